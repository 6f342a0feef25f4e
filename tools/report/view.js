// What of the plan is seen: program, arena, the window of time and addresses, the marked buffer. Panels draw
// it and are told when it changes.

class View {
  constructor(plan) {
    this.plan = plan;
    this.arena = 'Activations';
    this.axis = 'index';
    this.marked = null;
    this.dragged = false;  // since the button went down, so that the click that ends it marks nothing
    this.listeners = [];
    const busiest = plan.programs.find((program) => program.kind === 'Accumulate') ?? plan.programs[0];
    this.setProgram(busiest);
  }

  onChange(listener) { this.listeners.push(listener); }

  /// Redraws once, however many changes a frame brings.
  changed() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      for (const listener of this.listeners) listener();
    });
  }

  setProgram(program) {
    this.program = program;
    this.setAxis(this.axis);
  }

  setArena(arena) {
    this.arena = arena;
    this.showAll();
  }

  /// `edges[i]` is where instruction i starts on the time axis, `edges[count]` where the program ends.
  setAxis(axis) {
    this.axis = axis;
    this.edges = [0];
    for (const {seconds} of this.program.instructions)
      this.edges.push(this.edges.at(-1) + (axis === 'index' ? 1 : seconds));
    this.showAll();
  }

  showAll() {
    this.time = {low: 0, high: Math.max(this.edges.at(-1), Number.MIN_VALUE)};
    this.address = {low: 0, high: Math.max(this.addressEnd(), 1)};
    this.changed();
  }

  /// The address after the last one of what is shown; of the activations what this program needs of them.
  addressEnd() {
    const {arenas} = this.plan.header;
    if (this.arena === 'all') return arenas.reduce((sum, arena) => sum + arena.size, 0);
    if (this.arena === 'Activations') return this.program.arena_peak * 1.04;
    return arenas.find((arena) => arena.kind === this.arena)?.size ?? 1;
  }

  buffers() {
    const all = this.program.buffers.concat(this.plan.persistent);
    return this.arena === 'all' ? all : all.filter((buffer) => buffer.arena === this.arena);
  }

  /// The buffer's corners on both axes.
  extent(buffer) {
    const bottom = buffer.offset + (this.arena === 'all' ? buffer.base : 0);
    const forever = buffer.owner === null;
    return {
      left: forever ? 0 : this.edges[buffer.first],
      right: forever ? this.edges.at(-1) : this.edges[buffer.last + 1],
      bottom,
      top: bottom + buffer.size,
    };
  }

  x(value, area) {
    return area.left + (value - this.time.low) / (this.time.high - this.time.low) * area.width;
  }

  timeAt(x, area) { return this.time.low + (x - area.left) / area.width * (this.time.high - this.time.low); }

  /// The instruction at a time, by bisection of the edges.
  instructionAt(time) {
    let low = 0, high = this.program.instructions.length;
    if (time < 0 || time >= this.edges[high]) return null;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.edges[middle] <= time)
        low = middle;
      else
        high = middle;
    }
    return this.program.instructions[low];
  }

  /// Zooms a window around a point of it, at most out to `limit`.
  zoom(window, limit, centre, factor) {
    const span = Math.min((window.high - window.low) * factor, limit);
    const share = (centre - window.low) / (window.high - window.low);
    this.place(window, limit, centre - share * span, Math.max(span, limit * 1e-7));
  }

  pan(window, limit, distance) { this.place(window, limit, window.low + distance, window.high - window.low); }

  place(window, limit, low, span) {
    window.low = Math.min(Math.max(low, 0), Math.max(limit - span, 0));
    window.high = window.low + span;
    this.changed();
  }

  zoomTime(centre, factor) { this.zoom(this.time, this.edges.at(-1), centre, factor); }

  zoomAddress(centre, factor) { this.zoom(this.address, this.addressEnd(), centre, factor); }

  panTime(distance) { this.pan(this.time, this.edges.at(-1), distance); }

  panAddress(distance) { this.pan(this.address, this.addressEnd(), distance); }

  mark(buffer) {
    this.marked = buffer;
    if (buffer !== null && buffer.owner !== null && buffer.owner !== this.program)
      this.setProgram(buffer.owner);
    if (buffer !== null && this.arena !== 'all' && this.arena !== buffer.arena) this.setArena(buffer.arena);
    this.changed();
  }

  /// Brings an instruction to the middle.
  goTo(instruction) {
    if (instruction.program !== this.program) this.setProgram(instruction.program);
    const centre = this.edges[instruction.index];
    const span =
        Math.min(this.time.high - this.time.low, this.edges.at(-1) / Math.max(1, this.program.count / 60));
    this.place(this.time, this.edges.at(-1), centre - span / 2, span);
  }
}

/// Lets a canvas zoom and move the view. `vertical` tells whether its height is addresses.
function addNavigation(canvas, view, vertical) {
  const area = () => ({
    left: kMargin.left,
    width: canvas.clientWidth - kMargin.left - kMargin.right,
    bottom: canvas.clientHeight - kMargin.bottom,
    height: canvas.clientHeight - kMargin.top - kMargin.bottom,
  });
  const addressAt = (y) =>
      view.address.low + (area().bottom - y) / area().height * (view.address.high - view.address.low);
  canvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    const factor = Math.exp(0.0015 * (event.deltaY || event.deltaX));
    if (event.shiftKey && vertical)
      view.zoomAddress(addressAt(event.offsetY), factor);
    else
      view.zoomTime(view.timeAt(event.offsetX, area()), factor);
  }, {passive: false});
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    view.dragged = false;
  });
  canvas.addEventListener('pointermove', (event) => {
    if (event.buttons !== 1 || (event.movementX === 0 && event.movementY === 0)) return;
    view.dragged = true;
    view.panTime(-event.movementX / area().width * (view.time.high - view.time.low));
    if (vertical) view.panAddress(event.movementY / area().height * (view.address.high - view.address.low));
  });
  canvas.addEventListener('dblclick', () => view.showAll());
}

/// A canvas over the view's time. Subclasses draw() it and tell what lies under the pointer in hover(event).
class TimePane {
  /// `vertical` tells whether the canvas's height is addresses.
  constructor(canvas, view, vertical = false) {
    this.canvas = canvas;
    this.view = view;
    addNavigation(canvas, view, vertical);
    canvas.addEventListener('mousemove', (event) => this.hover(event));
    canvas.addEventListener('mouseleave', (event) => this.leave(event));
    view.onChange(() => this.draw());
  }

  leave(event) { showTip(event, null); }
}
