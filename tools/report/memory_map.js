// The memory map: time across, address up, a rectangle for every buffer.

class MemoryMap extends TimePane {
  constructor(canvas, view) {
    super(canvas, view, true);
    this.hovered = null;
    canvas.addEventListener('click', (event) => {
      if (!view.dragged) view.mark(this.bufferAt(event.offsetX, event.offsetY));
    });
  }

  leave(event) { this.setHovered(event, null); }

  /// The buffer's rectangle in pixels of the canvas.
  rectangle(buffer, area) {
    const {address} = this.view;
    const {left, right, bottom, top} = this.view.extent(buffer);
    const y = (value) => area.bottom - (value - address.low) / (address.high - address.low) * area.height;
    const x0 = this.view.x(left, area), x1 = this.view.x(right, area);
    return {x: x0, y: y(top), width: Math.max(x1 - x0, 0.6), height: Math.max(y(bottom) - y(top), 0.6)};
  }

  draw() {
    const {context, area} = startDrawing(this.canvas);
    this.area = area;
    const {address} = this.view;
    drawVerticalAxis(context, area, address.low, address.high, bytesText);
    const fills = Object.fromEntries(Object.keys(kKindNames).map((kind) => [kind, colour(kind)]));
    const style = {fills, panel: colour('panel'), ink: colour('ink'), recompute: colour('recompute')};
    clipped(context, area, () => {
      for (const buffer of this.view.buffers()) this.drawBuffer(context, area, buffer, style);
      this.drawPeak(context, area);
      for (const buffer of [this.view.marked, this.hovered])
        if (buffer !== null && this.isShown(buffer)) this.outline(context, this.rectangle(buffer, area));
    });
  }

  isShown(buffer) {
    return (buffer.owner === null || buffer.owner === this.view.program) &&
        (this.view.arena === 'all' || this.view.arena === buffer.arena);
  }

  drawBuffer(context, area, buffer, style) {
    const {x, y, width, height} = this.rectangle(buffer, area);
    if (x > area.right || x + width < area.left || y > area.bottom || y + height < area.top) return;
    const gap = width > 3 && height > 3 ? 0.5 : 0;
    context.fillStyle = style.fills[buffer.kind];
    context.fillRect(x + gap, y + gap, width - 2 * gap, height - 2 * gap);
    if (buffer.maker?.recompute && height > 2) {  // a bar at the start of what is computed again
      context.fillStyle = style.recompute;
      context.fillRect(x, y + gap, Math.min(3, width), height - 2 * gap);
    }
    const visible = Math.min(x + width, area.right) - Math.max(x, area.left);
    if (visible < 70 || height < 14) return;
    context.save();
    context.beginPath();
    context.rect(Math.max(x, area.left) + 4, y, visible - 8, height);
    context.clip();
    context.fillStyle = labelColour(style.fills[buffer.kind]);
    context.textAlign = 'left';
    context.textBaseline = 'middle';
    const middle = (Math.max(y, area.top) + Math.min(y + height, area.bottom)) / 2;
    context.fillText(`${buffer.name}  ${bytesText(buffer.size)}`, Math.max(x, area.left) + 6, middle);
    context.restore();
  }

  drawPeak(context, area) {
    const {program, edges} = this.view;
    if (program.live_peak === 0) return;
    const x = this.view.x((edges[program.peak_instruction] + edges[program.peak_instruction + 1]) / 2, area);
    context.strokeStyle = colour('bound');
    context.setLineDash([4, 3]);
    context.beginPath();
    context.moveTo(x, area.top);
    context.lineTo(x, area.bottom);
    context.stroke();
    context.setLineDash([]);
  }

  outline(context, {x, y, width, height}) {
    context.lineWidth = 2;
    context.strokeStyle = colour('ink');
    context.strokeRect(x, y, width, height);
    context.lineWidth = 1;
  }

  /// The smallest buffer under a point, so that slim ones can be met.
  bufferAt(x, y) {
    const area = this.area;
    if (!area || x < area.left || x > area.right || y < area.top || y > area.bottom) return null;
    let found = null, least = Infinity;
    for (const buffer of this.view.buffers()) {
      const box = this.rectangle(buffer, area);
      const inside = x >= box.x && x < box.x + Math.max(box.width, 1) && y >= box.y &&
          y < box.y + Math.max(box.height, 1);
      if (!inside || box.width * box.height >= least) continue;
      found = buffer;
      least = box.width * box.height;
    }
    return found;
  }

  hover(event) {
    this.setHovered(event, event.buttons === 0 ? this.bufferAt(event.offsetX, event.offsetY) : null);
  }

  setHovered(event, buffer) {
    showTip(event, buffer === null ? null : describeBuffer(buffer));
    if (buffer === this.hovered) return;
    this.hovered = buffer;
    this.draw();
  }
}

/// The lines of a tip.
function describeBuffer(buffer) {
  const lines =
      [buffer.name, `${bytesText(buffer.size)} (${withCommas(buffer.size)} B), ${kKindNames[buffer.kind]}`];
  if (buffer.owner === null) return lines.concat(`${kArenaNames[buffer.arena]} arena, always live`);
  const {first, last, maker} = buffer;
  lines.push(`live in instructions ${first} to ${last}, at ${withCommas(buffer.offset)}`);
  lines.push(`made by ${maker.label} (${maker.kernel})`);
  if (maker.recompute) lines.push('computed again for the backward pass');
  return lines;
}

function describeInstruction(instruction) {
  const {label, kernel, seconds, flops, bytes, program} = instruction;
  const lines = [
    label,
    `${kernel}, instruction ${instruction.index} of ${program.kind}`,
    `${timeText(seconds)}${instruction.derived ? ', derived' : ' predicted'}, ${
        shareText(seconds, program.seconds)} of the program`,
    `${siText(flops, 'FLOP')}, ${siText(bytes, 'B')}`,
    `${shareText(instruction.arithmetic, 1)} of the arithmetic ceiling, ${
        shareText(instruction.traffic, 1)} of the bandwidth`,
  ];
  if (instruction.recompute) lines.push('computes again what an earlier instruction made');
  return lines;
}
