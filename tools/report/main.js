// Puts the page together.

const kGroupsShown = 8;

function showHeader(plan) {
  const {header, ceilings, stepSeconds} = plan;
  document.title = `${header.name} - moec plan`;
  byId('name').textContent = header.name;
  byId('subtitle').textContent = header.recipe_text;
  const arena = header.arenas.find(({kind}) => kind === 'Activations')?.size ?? 0;
  const bound = header.activations_lower_bound;
  const again = plan.instructions.filter(({recompute}) => recompute).length;
  const cards = [
    [
      siText(header.parameters, '').trim(), 'parameters',
      `${siText(header.active_parameters, '').trim()} active`
    ],
    [
      timeText(stepSeconds),
      plan.instructions.some(({derived}) => derived) ? 'derived step' : 'predicted step',
      `${withCommas(header.tokens / stepSeconds)} tokens/s on ${ceilings.device}`
    ],
    [siText(header.flops, 'FLOP'), 'arithmetic of a step', `${siText(header.flops / stepSeconds, 'FLOP/s')}`],
    [siText(header.bytes, 'B'), 'memory traffic of a step', 'every operand once'],
    [bytesText(header.device_bytes), 'all arenas', `${withCommas(header.device_bytes)} B`],
    [
      bound > 0 ? `${(arena / bound).toFixed(3)} ×` : '-', 'activations over lower bound',
      again > 0 ? `${withCommas(again)} instructions recomputed` : 'nothing recomputed'
    ],
  ];
  for (const [value, name, note] of cards)
    byId('cards').append(
        element('div', {class: 'card'}, element('b', {}, value), name, element('span', {}, note)));
  for (const [name, text] of header.recipe)
    byId('recipe').append(element('dt', {}, name), element('dd', {}, text));
}

/// Parts with their sizes as one bar and a list.
function showArenas(container, {arenas, device_bytes: whole, saved_by_order: saved}) {
  const stack = element('div', {class: 'stack'});
  const table = element('table', {class: 'plain'});
  const line = (name, bytes, share, attributes = {}) => table.append(element(
      'tr', attributes, element('td', {}, name),
      element('td', {class: 'number quiet'}, `${withCommas(bytes)} B`),
      element('td', {class: 'number'}, bytesText(bytes)), element('td', {class: 'number quiet'}, share)));
  for (const {kind, size} of arenas) {
    const part = element('i', {title: `${kArenaNames[kind]}: ${bytesText(size)}`});
    part.style.cssText = `flex: ${size} 0 0; background: var(--${kArenaColours[kind]})`;
    stack.append(part);
    line(legendEntry(kArenaColours[kind], kArenaNames[kind]), size, shareText(size, whole));
  }
  line('all arenas', whole, '100.0%', {class: 'sum'});
  if (saved > 0) line('saved by the order of instructions', saved, '', {class: 'quiet'});
  container.append(stack, table);
}

/// Why the peak is what it is, and what is known of the marked buffer.
function showPeak(container, view) {
  const {program, marked, plan} = view;
  container.replaceChildren();
  if (program.live_peak === 0) {
    container.append(
        element('p', {class: 'quiet'}, `${program.kind} keeps nothing in the activation arena.`));
  } else {
    const at = program.peak_instruction;
    const peak = program.instructions[at];
    const live =
        program.buffers.filter(({first, last}) => first <= at && at <= last).sort((a, b) => b.size - a.size);
    const groups = groupBuffers(live);
    container.append(
        element('h3', {}, `Peak: ${bytesText(program.live_peak)} live`),
        element(
            'p', {class: 'quiet'},
            `in ${live.length} buffers at instruction ${at}, ${peak.label} (${peak.kernel})`),
        groupList(groups.slice(0, kGroupsShown), view));
    const rest = groups.slice(kGroupsShown).reduce((sum, {size}) => sum + size, 0);
    if (rest > 0) container.append(element('p', {class: 'quiet'}, `and ${bytesText(rest)} in smaller ones`));
  }
  if (marked === null) return;
  const tensors = plan.tensors.filter(({buffer}) => buffer === marked.id);
  container.append(
      element('h3', {}, 'Marked: ' + marked.name),
      ...describeBuffer(marked).slice(1).map((text) => element('p', {class: 'quiet'}, text)),
      element(
          'p', {class: 'quiet'},
          'holds ' + tensors.slice(0, 4).map(({name, type}) => `${name} ${type}`).join(', ') +
              (tensors.length > 4 ? ` and ${tensors.length - 4} more` : '')));
}

/// The same buffers of a block's repetitions together, the largest sum first.
function groupBuffers(buffers) {
  const groups = new Map();
  for (const buffer of buffers) {
    const name = withoutRepetition(buffer.name);
    if (!groups.has(name)) groups.set(name, {name, size: 0, buffers: []});
    groups.get(name).size += buffer.size;
    groups.get(name).buffers.push(buffer);
  }
  return [...groups.values()].sort((a, b) => b.size - a.size);
}

function groupList(groups, view) {
  return element('ol', {}, ...groups.map(({name, size, buffers}) => {
    const [first] = buffers;
    const title = buffers.length > 1 ? `${name} × ${buffers.length}` : name;
    const made =
        `${bytesText(first.size)} by ${withoutRepetition(first.maker.label)} (${first.maker.kernel})`;
    const button = element(
        'button', {}, element('span', {}, legendEntry(first.kind, title)), bytesText(size),
        element('small', {}, buffers.length > 1 ? `each ${made}` : made));
    button.addEventListener('click', () => view.mark(first));
    return element('li', {}, button);
  }));
}

function showLegends(view) {
  const kinds = [...new Set(view.buffers().map(({kind}) => kind))];
  const entries = kinds.map((kind) => legendEntry(kind, kKindNames[kind]));
  const again = view.program.instructions.some(({recompute}) => recompute);
  if (again) entries.push(legendEntry('recompute', 'computed again'));
  byId('legend').replaceChildren(...entries);
  const limits = Object.entries(kLimitNames).map(([name, text]) => legendEntry(name, text));
  byId('roofline-legend')
      .replaceChildren(...limits, ...(again ? [legendEntry('recompute', 'computed again')] : []));
}

function connectControls(view) {
  const {programs, header} = view.plan;
  const program = byId('program'), arena = byId('arena'), axis = byId('axis');
  programs.forEach(
      ({kind, count}, i) => program.append(element('option', {value: i}, `${kind} (${withCommas(count)})`)));
  for (const {kind} of header.arenas) arena.append(element('option', {value: kind}, kArenaNames[kind]));
  arena.append(element('option', {value: 'all'}, 'all'));
  program.addEventListener('change', () => view.setProgram(programs[program.value]));
  arena.addEventListener('change', () => view.setArena(arena.value));
  axis.addEventListener('change', () => view.setAxis(axis.value));
  view.onChange(() => {
    program.value = programs.indexOf(view.program);
    arena.value = view.arena;
  });
  const middle = () => (view.time.low + view.time.high) / 2;
  byId('zoom-in').addEventListener('click', () => view.zoomTime(middle(), 0.5));
  byId('zoom-out').addEventListener('click', () => view.zoomTime(middle(), 2));
  byId('zoom-all').addEventListener('click', () => view.showAll());
  const part = () => (view.time.high - view.time.low) / 8,
        height = () => (view.address.high - view.address.low) / 8;
  const keys = {
    ArrowLeft: () => view.panTime(-part()),
    ArrowRight: () => view.panTime(part()),
    ArrowUp: () => view.panAddress(height()),
    ArrowDown: () => view.panAddress(-height()),
    '+': () => view.zoomTime(middle(), 0.5),
    '-': () => view.zoomTime(middle(), 2),
    0: () => view.showAll(),
  };
  byId('map').addEventListener('keydown', (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
}

function connectTables(view) {
  const open = (row) => {
    if ('arena' in row)
      view.mark(row);
    else
      view.goTo('first' in row ? row.first : row);
  };
  const table = new Table(byId('table'), open, (shown, all) => {
    byId('count').textContent = `${withCommas(shown)} of ${withCommas(all)}`;
  });
  const {plan} = view;
  const tables = {
    Kernels: () => table.setRows(kernelColumns(plan), kernelRows(plan), 2),
    Instructions: () => table.setRows(kInstructionColumns, plan.instructions, 4),
    Buffers: () => table.setRows(kBufferColumns, plan.buffers, 3),
  };
  for (const [name, show] of Object.entries(tables)) {
    const tab = element('button', {role: 'tab', id: `tab-${name.toLowerCase()}`}, name);
    tab.addEventListener('click', () => {
      for (const other of byId('tabs').children) other.setAttribute('aria-selected', other === tab);
      show();
    });
    byId('tabs').append(tab);
  }
  byId('tab-instructions').click();
  byId('search').addEventListener('input', () => table.search(byId('search').value));
  document.addEventListener('keydown', (event) => {
    const typing = event.target instanceof HTMLInputElement;
    if (event.key === '/' && !typing) {
      event.preventDefault();
      byId('search').focus();
    } else if (event.key === 'Escape') {
      byId('search').value = '';
      byId('search').blur();
      table.search('');
      view.mark(null);
    }
  });
}

function main() {
  const plan = readPlan(JSON.parse(byId('plan').textContent));
  showHeader(plan);
  showArenas(byId('arenas'), plan.header);
  const view = new View(plan);
  const map = new MemoryMap(byId('map'), view);
  new LiveBytes(byId('live'), view);
  new Timeline(byId('timeline'), view);
  new Roofline(byId('roofline'), view);
  view.onChange(() => showPeak(byId('peak'), view));
  view.onChange(() => showLegends(view));
  connectControls(view);
  connectTables(view);
  showGraph(byId('graph'), plan.blocks);
  window.addEventListener('resize', () => view.changed());
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => view.changed());
  if (location.hash === '#selftest') selfTest(plan, view, map);
}

main();
