// A table of many rows, of which only those in sight are elements. Columns: {title, width, value, text,
// number}.

const kRowHeight = 26;

class Table {
  /// `open` is called with the row that is clicked; `status` is told how many rows are shown.
  constructor(container, open, status) {
    this.open = open;
    this.status = status;
    this.head = element('div', {class: 'row head'});
    this.space = element('div');
    this.body = element('div', {class: 'body', tabindex: '0'}, this.space);
    container.append(this.head, this.body);
    this.body.addEventListener('scroll', () => this.drawRows());
    this.query = '';
    this.marked = null;
  }

  /// Shows rows sorted by the column of this index, the largest first.
  setRows(columns, rows, sorted) {
    this.columns = columns;
    this.rows = rows.map(
        (row) => ({
          row,
          words: columns.filter(({number}) => !number).map(({value}) => value(row)).join(' ').toLowerCase()
        }));
    this.sorted = sorted;
    this.descending = columns[sorted].number === true;
    this.update();
  }

  /// Rows in which every word of the query occurs.
  search(query) {
    this.query = query;
    this.update();
  }

  sortBy(index) {
    this.descending = index === this.sorted ? !this.descending : this.columns[index].number === true;
    this.sorted = index;
    this.update();
  }

  update() {
    const words = this.query.toLowerCase().split(/\s+/).filter((word) => word.length > 0);
    const {value} = this.columns[this.sorted];
    const sign = this.descending ? -1 : 1;
    const compare = (a, b) => a < b ? -sign : a > b ? sign : 0;
    this.shown = this.rows.filter((entry) => words.every((word) => entry.words.includes(word)))
                     .map(({row}) => row)
                     .sort((a, b) => compare(value(a), value(b)));
    this.status(this.shown.length, this.rows.length);
    this.drawHead();
    this.space.style.height = `${this.shown.length * kRowHeight}px`;
    this.body.scrollTop = 0;
    this.drawRows();
  }

  layout(row) {
    row.style.gridTemplateColumns = this.columns.map(({width}) => width).join(' ');
    return row;
  }

  drawHead() {
    this.head.replaceChildren(...this.columns.map(({title, number}, index) => {
      const arrow = index !== this.sorted ? '' : this.descending ? ' ↓' : ' ↑';
      const button = element('button', number ? {class: 'number'} : {}, title + arrow);
      button.addEventListener('click', () => this.sortBy(index));
      return button;
    }));
    this.layout(this.head);
  }

  drawRows() {
    const first = Math.max(0, Math.floor(this.body.scrollTop / kRowHeight) - 4);
    const count = Math.ceil(this.body.clientHeight / kRowHeight) + 8;
    const elements = this.shown.slice(first, first + count).map((row, i) => {
      const cells = this.columns.map(({value, text, number}) => {
        const content = text ? text(row) : String(value(row));
        return element('span', number ? {class: 'number'} : {title: content}, content);
      });
      const line = this.layout(element('div', {class: row === this.marked ? 'row marked' : 'row'}, ...cells));
      line.style.top = `${(first + i) * kRowHeight}px`;
      line.addEventListener('click', () => {
        this.marked = row;
        this.open(row);
        this.drawRows();
      });
      return line;
    });
    this.body.replaceChildren(this.space, ...elements);
  }
}

function numberColumn(title, width, value, text) {
  return {title, width, value, text: (row) => text(value(row)), number: true};
}

const kBufferColumns = [
  {title: 'Buffer', width: '3fr', value: ({name}) => name},
  {title: 'Kind', width: '1.2fr', value: ({kind}) => kKindNames[kind]},
  {title: 'Program', width: '1fr', value: ({owner}) => owner === null ? 'all' : owner.kind},
  numberColumn('Size', '1fr', ({size}) => size, bytesText),
  numberColumn('Address', '1.2fr', ({offset}) => offset, withCommas),
  numberColumn('From', '0.6fr', ({first}) => first, withCommas),
  numberColumn('To', '0.6fr', ({last}) => last, withCommas),
  {
    title: 'Made by',
    width: '3fr',
    value: ({maker}) => maker === null ? '' : `${maker.label} (${maker.kernel})`
  },
];

const kInstructionColumns = [
  numberColumn('#', '0.5fr', ({index}) => index, withCommas),
  {title: 'Program', width: '0.9fr', value: ({program}) => program.kind},
  {
    title: 'Instruction',
    width: '2.4fr',
    value: ({label, recompute}) => label + (recompute ? ' (again)' : '')
  },
  {title: 'Kernel', width: '2.5fr', value: ({kernel}) => kernel},
  numberColumn('Time', '0.8fr', ({seconds}) => seconds, timeText),
  numberColumn(
      'Of program', '0.8fr', ({seconds, program}) => seconds / (program.seconds || 1),
      (share) => shareText(share, 1)),
  numberColumn('Arithmetic', '1fr', ({flops}) => flops, (flops) => siText(flops, 'FLOP')),
  numberColumn('Traffic', '0.9fr', ({bytes}) => bytes, (bytes) => siText(bytes, 'B')),
  numberColumn(
      'Of ceiling', '0.8fr', ({arithmetic, traffic}) => Math.max(arithmetic, traffic),
      (share) => shareText(share, 1)),
  {title: 'Limit', width: '0.8fr', value: ({limit}) => limit},
];

function kernelColumns(plan) {
  return [
    {title: 'Kernel', width: '3fr', value: ({name}) => name},
    numberColumn('Calls a step', '1fr', ({calls}) => calls, withCommas),
    numberColumn('Time', '1fr', ({seconds}) => seconds, timeText),
    numberColumn('Share', '1fr', ({seconds}) => seconds, (seconds) => shareText(seconds, plan.stepSeconds)),
    numberColumn('Arithmetic', '1fr', ({flops}) => flops, (flops) => siText(flops, 'FLOP')),
    numberColumn('Traffic', '1fr', ({bytes}) => bytes, (bytes) => siText(bytes, 'B')),
    numberColumn('FLOP/B', '1fr', ({flops, bytes}) => bytes > 0 ? flops / bytes : 0, threeDigits),
  ];
}
