// With #selftest the page uses itself as a person would, once it is drawn, and leaves what it saw as JSON in
// an element; tests/report reads it.

function nextFrame() {
  return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}

function pointAt(canvas, x, y, type) {
  const {left, top} = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new MouseEvent(type, {clientX: left + x, clientY: top + y, bubbles: true}));
}

function typeKey(key) {
  (document.activeElement ?? document.body)
      .dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
}

/// The middle of a buffer's rectangle, off its label.
function pointOf(map, buffer) {
  const {x, y, width, height} = map.rectangle(buffer, map.area);
  return {x: x + width / 2, y: y + (height > 30 ? 5 : height / 2)};
}

async function selfTest(plan, view, map) {
  const seen = {};
  await nextFrame();
  seen.milliseconds = performance.now();
  seen.title = document.title;
  seen.heading = byId('name').textContent;
  seen.images = document.images.length;
  seen.liveAgrees = plan.programs.every(
      ({liveTotal, live_peak: peak}) => liveTotal.reduce((a, b) => Math.max(a, b), 0) === peak);

  const largest = view.buffers().reduce(
      (a, b) => b.size * (b.last - b.first + 1) > a.size * (a.last - a.first + 1) ? b : a);
  const place = pointOf(map, largest);
  pointAt(map.canvas, place.x, place.y, 'mousemove');
  seen.hovered = {tip: byId('tip').textContent, shown: !byId('tip').hidden, name: map.hovered?.name ?? ''};
  pointAt(map.canvas, place.x, place.y, 'mouseleave');

  typeKey('/');
  const search = byId('search');
  seen.slashFocuses = document.activeElement === search;
  const [kernel] = plan.instructions.map(({kernel: name}) => name)
                       .filter((name) => name.startsWith('rmsnorm') || name.startsWith('layernorm'));
  search.value = kernel;
  search.dispatchEvent(new Event('input'));
  const expected = plan.instructions.filter((row) => `${row.label} ${row.kernel}`.includes(kernel)).length;
  seen.search = {
    query: kernel,
    count: byId('count').textContent,
    expected: `${withCommas(expected)} of ${withCommas(plan.instructions.length)}`,
    rows: document.querySelectorAll('.body .row').length
  };
  typeKey('Escape');
  seen.escapeClears =
      search.value === '' && byId('count').textContent.startsWith(withCommas(plan.instructions.length));

  byId('tab-buffers').click();
  const sizes =
      [...document.querySelectorAll('.body .row .number:nth-child(4)')].map((cell) => cell.textContent);
  seen.firstBuffer = sizes[0] === bytesText(plan.buffers.reduce((most, {size}) => Math.max(most, size), 0));
  byId('tab-instructions').click();

  const before = view.time.high - view.time.low;
  byId('zoom-in').click();
  seen.zooms = view.time.high - view.time.low < before;
  view.showAll();
  await nextFrame();
  const box = map.canvas.getBoundingClientRect();
  seen.pixels =
      view.buffers()
          .filter((buffer) => {
            const {width, height} = map.rectangle(buffer, map.area);
            return width > 8 && height > 8;
          })
          .slice(0, 40)
          .map((buffer) => {
            const {x, y} = pointOf(map, buffer);
            return {x: Math.round(box.left + x), y: Math.round(box.top + y), colour: colour(buffer.kind)};
          });
  document.body.append(element('pre', {id: 'selftest', hidden: ''}, JSON.stringify(seen)));
}
