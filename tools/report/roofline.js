// Arithmetic intensity against the FLOP/s of the predicted time, both logarithmic, under the device's roof.

class Roofline {
  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view;
    this.points = [];
    canvas.addEventListener('mousemove', (event) => this.hover(event));
    canvas.addEventListener('mouseleave', (event) => showTip(event, null));
    view.onChange(() => this.draw());
  }

  draw() {
    const {context, area} = startDrawing(this.canvas);
    const {program, plan} = this.view;
    const shown =
        program.instructions.filter(({flops, bytes, seconds}) => flops > 0 && bytes > 0 && seconds > 0);
    this.note(program, shown);
    this.points = [];
    if (shown.length === 0) return;
    const roofs = [...new Set(shown.map(({ceiling}) => ceiling))];
    const x = this.scale(shown.map(({flops, bytes}) => flops / bytes), area.left, area.right, 1);
    const y =
        this.scale(shown.map(({flops, seconds}) => flops / seconds).concat(roofs), area.bottom, area.top, 2);
    this.drawAxes(context, area, x, y);
    clipped(context, area, () => this.drawRoofs(context, area, x, y, roofs, plan.ceilings.bytes));
    const longest = largest(shown.map(({seconds}) => seconds));
    for (const instruction of shown) {
      const point = {
        instruction,
        x: x.at(instruction.flops / instruction.bytes),
        y: y.at(instruction.flops / instruction.seconds),
        radius: 2.5 + 7 * Math.sqrt(instruction.seconds / longest),
      };
      this.points.push(point);
      context.globalAlpha = 0.55;
      context.fillStyle = colour(instruction.recompute ? 'recompute' : instruction.limit);
      context.beginPath();
      context.arc(point.x, point.y, point.radius, 0, 2 * Math.PI);
      context.fill();
      context.globalAlpha = 1;
    }
  }

  /// Whole decades around the values, with `room` more at the top for labels.
  scale(values, from, to, room) {
    const low = Math.floor(Math.log10(smallest(values)));
    const high = Math.max(Math.ceil(Math.log10(largest(values)) + 0.1 * room), low + 1);
    return {low, high, at: (value) => from + (Math.log10(value) - low) / (high - low) * (to - from)};
  }

  drawAxes(context, area, x, y) {
    context.strokeStyle = colour('line');
    context.fillStyle = colour('quiet');
    const line = (x0, y0, x1, y1) => {
      context.beginPath();
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
      context.stroke();
    };
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (let decade = y.low; decade <= y.high; ++decade) {
      const level = y.at(10 ** decade);
      line(area.left, level, area.right, level);
      context.fillText(siText(10 ** decade, '').replace(/\.0+/, ''), area.left - 8, level);
    }
    context.textAlign = 'center';
    context.textBaseline = 'top';
    for (let decade = x.low; decade <= x.high; ++decade) {
      line(x.at(10 ** decade), area.top, x.at(10 ** decade), area.bottom);
      const text = decade < 0 ? (10 ** decade).toFixed(-decade) : withCommas(10 ** decade);
      context.fillText(
          decade === x.high ? 'FLOP/B' : text, Math.min(x.at(10 ** decade), area.right - 16),
          area.bottom + 5);
    }
  }

  drawRoofs(context, area, x, y, roofs, bandwidth) {
    context.strokeStyle = colour('ink');
    context.fillStyle = colour('ink');
    context.textAlign = 'left';
    context.textBaseline = 'bottom';
    for (const roof of roofs) {
      context.beginPath();
      context.moveTo(x.at(10 ** x.low), y.at(10 ** x.low * bandwidth));
      context.lineTo(x.at(roof / bandwidth), y.at(roof));
      context.lineTo(Math.max(area.right, x.at(roof / bandwidth)), y.at(roof));
      context.stroke();
      context.fillText(siText(roof, 'FLOP/s'), x.at(roof / bandwidth) + 4, y.at(roof) - 3);
    }
  }

  note(program, shown) {
    const {ceilings} = this.view.plan;
    const derived = program.instructions.filter((instruction) => instruction.derived).length;
    let text =
        `${program.kind} on ${ceilings.device}: ${withCommas(shown.length)} instructions with arithmetic, ` +
        `${
            siText(
                ceilings.bytes,
                'B/s')} of memory bandwidth. FLOP/s over FLOP per byte; larger points take longer.`;
    if (derived > 0) {
      text += ` ${withCommas(derived)} instructions have no predicted time: ` +
          'theirs is derived from FLOPs and bytes at the ceilings.';
    }
    byId('roofline-note').textContent = text;
  }

  hover(event) {
    let found = null, least = Infinity;
    for (const point of this.points) {
      const distance = Math.hypot(point.x - event.offsetX, point.y - event.offsetY);
      if (distance > point.radius + 3 || distance >= least) continue;
      found = point;
      least = distance;
    }
    showTip(event, found === null ? null : describeInstruction(found.instruction));
  }
}
