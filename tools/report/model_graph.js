// The model by blocks: its nodes in order, an arrow from each value to where it is read.

const kGraph = {
  row: 38,
  box: 28,
  lane: 11,
  width: 960
};

function svgElement(tag, attributes, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/// Edges between rows of a block; values from elsewhere have rows of their own at the top.
function blockEdges(block) {
  const inside = new Map(block.nodes.map((node, i) => [node.name, i]));
  const outside = [];
  for (const node of block.nodes)
    for (const input of node.inputs)
      if (!inside.has(input.split('.')[0]) && !outside.includes(input)) outside.push(input);
  const edges = new Map();
  block.nodes.forEach((node, i) => {
    for (const input of node.inputs) {
      const source = inside.get(input.split('.')[0]);
      const from = source === undefined ? outside.indexOf(input) : source + outside.length;
      edges.set(`${from} ${i + outside.length}`, {from, to: i + outside.length});
    }
  });
  return {outside, edges: [...edges.values()]};
}

/// Gives edges that skip rows lanes of their own, short edges the inner ones.
function assignLanes(edges) {
  const lanes = [];
  for (const edge of edges.filter(({from, to}) => to - from > 1)
           .sort((a, b) => (a.to - a.from) - (b.to - b.from))) {
    let lane = lanes.findIndex((taken) => taken.every(({from, to}) => edge.to <= from || edge.from >= to));
    if (lane < 0) lane = lanes.push([]) - 1;
    lanes[lane].push(edge);
    edge.lane = lane;
  }
  return lanes.length;
}

function drawBlock(block) {
  const {outside, edges} = blockEdges(block);
  const left = 26 + assignLanes(edges) * kGraph.lane;
  const rowCount = outside.length + block.nodes.length;
  const svg = svgElement('svg', {
    viewBox: `0 0 ${kGraph.width} ${rowCount * kGraph.row}`,
    role: 'img',
    'aria-label': `Nodes of ${block.name}`
  });
  const middle = (row) => (row + 0.5) * kGraph.row;
  for (const {from, to, lane} of edges) {
    const x = left - 8 - (lane ?? 0) * kGraph.lane;
    const straight = lane === undefined;
    const end = middle(to) - (straight ? kGraph.box / 2 : 5);
    const path = straight ?
        `M${left + 40},${middle(from) + kGraph.box / 2} V${end - 3}` :
        `M${left},${middle(from) + 5} H${x + 6} q-6,0 -6,6 V${end - 6} q0,6 6,6 H${left - 4}`;
    svg.append(svgElement('path', {d: path}));
    const tip = straight ? `M${left + 36},${end - 5} h8 l-4,5 z` : `M${left - 6},${end - 4} v8 l6,-4 z`;
    svg.append(svgElement('path', {class: 'arrow', d: tip}));
  }
  outside.forEach(
      (name, row) => svg.append(
          svgElement('text', {class: 'quiet', x: left + 12, y: middle(row) + 4}, `${name}, from outside`)));
  block.nodes.forEach((node, i) => drawNode(svg, node, left, middle(i + outside.length)));
  return svg;
}

function drawNode(svg, node, left, middle) {
  const box =
      {x: left, y: middle - kGraph.box / 2, width: kGraph.width - left - 2, height: kGraph.box, rx: 6};
  svg.append(svgElement('rect', node.parameters ? {...box, class: 'weights'} : box));
  const cell = (x, text, quiet) => svg.append(
      svgElement('text', {x: left + x, y: middle + 4.5, ...(quiet ? {class: 'quiet'} : {})}, text));
  cell(12, node.name, false);
  cell(170, node.op, true);
  cell(300, node.type || 'fused', true);
  cell(500, node.parameters, true);
}

function showGraph(container, blocks) {
  for (const block of blocks) {
    const repeated = block.repeat > 1;
    const carry = block.carry.map(([from, to]) => `${to} becomes ${from} of the next`).join(', ');
    const note = `${block.nodes.length} nodes${carry ? `; ${carry}` : ''}`;
    const summary = element(
        'summary', {}, element('b', {}, block.name + (repeated ? ` × ${block.repeat}` : '')),
        element('span', {class: 'quiet'}, `   ${note}`));
    const details = element('details', repeated || blocks.length === 1 ? {open: ''} : {}, summary);
    details.append(drawBlock(block));
    container.append(details);
  }
}
