// What the canvases share: sharp pixels, axes, the tip beside the pointer.

const kMargin = {
  left: 74,
  right: 10,
  top: 8,
  bottom: 20
};

/// A cleared context in CSS pixels, and the area that the axes leave.
function startDrawing(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const {clientWidth: width, clientHeight: height} = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const area = {
    left: kMargin.left,
    top: kMargin.top,
    right: width - kMargin.right,
    bottom: height - kMargin.bottom,
  };
  area.width = area.right - area.left;
  area.height = area.bottom - area.top;
  return {context, area};
}

/// Round steps of about `count` ticks in a range; bytes step in powers of two.
function ticks(low, high, count, binary = false) {
  const raw = Math.max((high - low) / count, Number.MIN_VALUE);
  const base = binary ? 2 : 10;
  let step = base ** Math.floor(Math.log(raw) / Math.log(base));
  for (const factor of binary ? [1, 2] : [1, 2, 5, 10]) {
    if (step * factor < raw) continue;
    step *= factor;
    break;
  }
  const list = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) list.push(value);
  return list;
}

/// Labelled lines across the area; `share` tells how far up a value from 0 to 1 of the range is.
function drawVerticalAxis(context, area, low, high, text, count = 6, binary = true, share = (part) => part) {
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  for (const value of ticks(low, high, count, binary)) {
    const y = area.bottom - share((value - low) / (high - low)) * area.height;
    context.strokeStyle = colour('line');
    context.beginPath();
    context.moveTo(area.left, Math.round(y) + 0.5);
    context.lineTo(area.right, Math.round(y) + 0.5);
    context.stroke();
    context.fillStyle = colour('quiet');
    context.fillText(text(value), area.left - 8, y);
  }
}

/// Black or white, whichever is easier to read on a colour "#rrggbb" (WCAG's relative luminance).
function labelColour(fill) {
  const [red, green, blue] = [1, 3, 5].map((at) => (parseInt(fill.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2 ? '#101418' : '#ffffff';
}

/// Draws within the area only.
function clipped(context, area, draw) {
  context.save();
  context.beginPath();
  context.rect(area.left, area.top, area.width, area.height);
  context.clip();
  draw();
  context.restore();
}

/// Shows [name, ...lines] beside the pointer, or hides the tip.
function showTip(event, lines) {
  const tip = byId('tip');
  tip.hidden = lines === null;
  if (lines === null) return;
  tip.replaceChildren(element('b', {}, lines[0]), ...lines.slice(1).map((line) => element('div', {}, line)));
  const {width, height} = tip.getBoundingClientRect();
  const left =
      event.clientX + 16 + width > window.innerWidth ? event.clientX - width - 12 : event.clientX + 16;
  const top =
      event.clientY + 16 + height > window.innerHeight ? event.clientY - height - 12 : event.clientY + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}
