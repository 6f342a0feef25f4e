// The schedule: every instruction's predicted time, coloured by what limits it. Heights are square roots, so
// that short instructions stay in sight.

const kLimitNames = {
  arithmetic: 'limited by arithmetic',
  traffic: 'by memory traffic',
  neither: 'below half of both ceilings'
};

class Timeline extends TimePane {
  draw() {
    const {context, area} = startDrawing(this.canvas);
    this.area = area;
    const {program, edges, time} = this.view;
    const longest =
        program.instructions.reduce((most, {seconds}) => Math.max(most, seconds), Number.MIN_VALUE);
    const high = longest * 1.08;
    drawVerticalAxis(context, area, 0, high, timeText, 3, false, Math.sqrt);
    const fills =
        Object.fromEntries(['recompute', ...Object.keys(kLimitNames)].map((name) => [name, colour(name)]));
    clipped(context, area, () => {
      for (const instruction of program.instructions) {
        const x0 = this.view.x(edges[instruction.index], area),
              x1 = this.view.x(edges[instruction.index + 1], area);
        if (x1 < area.left || x0 > area.right) continue;
        const width = Math.max(x1 - x0 - (x1 - x0 > 4 ? 1 : 0), 0.8);
        const height = Math.max(Math.sqrt(instruction.seconds / high) * area.height, 1);
        context.fillStyle = fills[instruction.limit];
        context.fillRect(x0, area.bottom - height, width, height);
        if (!instruction.recompute) continue;
        context.fillStyle = fills.recompute;
        context.fillRect(x0, area.top, width, 4);
      }
    });
    this.drawTimeAxis(context, area, time);
  }

  drawTimeAxis(context, area, time) {
    context.fillStyle = colour('quiet');
    context.textAlign = 'center';
    context.textBaseline = 'top';
    const text = this.view.axis === 'index' ? withCommas : timeText;
    for (const value of ticks(time.low, time.high, 10))
      context.fillText(text(value), Math.min(this.view.x(value, area), area.right - 12), area.bottom + 5);
  }

  hover(event) {
    const instruction =
        this.area ? this.view.instructionAt(this.view.timeAt(event.offsetX, this.area)) : null;
    showTip(event, instruction === null ? null : describeInstruction(instruction));
  }
}
