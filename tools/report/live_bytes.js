// The bytes that are live at each instruction, stacked by kind, under the arena's size.

class LiveBytes extends TimePane {
  draw() {
    const {context, area} = startDrawing(this.canvas);
    this.area = area;
    const {program} = this.view;
    const high = Math.max(program.arena_peak * 1.18, 1);
    const y = (value) => area.bottom - value / high * area.height;
    drawVerticalAxis(context, area, 0, high, bytesText, 3);
    clipped(context, area, () => {
      const below = new Float64Array(program.count);
      for (const [kind, bytes] of Object.entries(program.live)) {
        this.drawLayer(context, area, bytes, below, y);
        context.fillStyle = colour(kind);
        context.fill();
        for (let i = 0; i < program.count; ++i) below[i] += bytes[i];
      }
      if (program.live_peak > 0) this.drawBounds(context, area, y);
    });
  }

  /// The path of a stack's layer, in steps.
  drawLayer(context, area, bytes, below, y) {
    const {edges, program} = this.view;
    context.beginPath();
    for (let i = 0; i < program.count; ++i) {
      const level = y(below[i] + bytes[i]);
      context.lineTo(this.view.x(edges[i], area), level);
      context.lineTo(this.view.x(edges[i + 1], area), level);
    }
    for (let i = program.count - 1; i >= 0; --i) {
      context.lineTo(this.view.x(edges[i + 1], area), y(below[i]));
      context.lineTo(this.view.x(edges[i], area), y(below[i]));
    }
    context.closePath();
  }

  drawBounds(context, area, y) {
    const {program, edges} = this.view;
    const level = (bytes, dash) => {
      context.setLineDash(dash);
      context.beginPath();
      context.moveTo(area.left, y(bytes));
      context.lineTo(area.right, y(bytes));
      context.stroke();
    };
    context.strokeStyle = colour('bound');
    level(program.live_peak, [4, 3]);
    context.strokeStyle = colour('ink');
    level(program.arena_peak, []);
    context.fillStyle = colour('ink');
    context.textAlign = 'left';
    context.textBaseline = 'bottom';
    const ratio = (program.arena_peak / program.live_peak).toFixed(3);
    context.fillText(
        `needs ${bytesText(program.arena_peak)}, lower bound ${bytesText(program.live_peak)} (${ratio} ×)`,
        area.left + 6, y(program.arena_peak) - 2);
    const x = this.view.x((edges[program.peak_instruction] + edges[program.peak_instruction + 1]) / 2, area);
    context.fillStyle = colour('bound');
    context.beginPath();
    context.arc(x, y(program.live_peak), 4, 0, 2 * Math.PI);
    context.fill();
  }

  hover(event) {
    const instruction =
        this.area ? this.view.instructionAt(this.view.timeAt(event.offsetX, this.area)) : null;
    if (instruction === null) return showTip(event, null);
    const {live, liveTotal} = this.view.program;
    const parts = Object.entries(live)
                      .filter(([, bytes]) => bytes[instruction.index] > 0)
                      .map(([kind, bytes]) => `${kKindNames[kind]} ${bytesText(bytes[instruction.index])}`);
    showTip(event, [
      `${bytesText(liveTotal[instruction.index])} live`,
      ...parts,
      `at instruction ${instruction.index}, ${instruction.label} (${instruction.kernel})`,
    ]);
  }
}
