// Numbers for people, as tools/units.cc writes them, and elements of the page.

function threeDigits(value) { return value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0); }

function bytesText(bytes) {
  if (bytes < 1024) return `${Math.round(bytes)} B`;
  const units = ['KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = -1;
  for (; bytes >= 999.5; ++unit) bytes /= 1024;
  if (unit < 0) return `${threeDigits(bytes / 1024)} ${units[0]}`;
  return `${threeDigits(bytes)} ${units[unit]}`;
}

/// 1.23 TFLOP, in powers of 1000.
function siText(value, unit) {
  const prefixes = ['', 'k', 'M', 'G', 'T', 'P', 'E'];
  let prefix = 0;
  for (; value >= 999.5 && prefix + 1 < prefixes.length; ++prefix) value /= 1000;
  return `${prefix === 0 ? Math.round(value) : threeDigits(value)} ${prefixes[prefix]}${unit}`;
}

function timeText(seconds) {
  if (seconds === 0) return '0';
  if (seconds < 0.9995e-3) return `${threeDigits(seconds * 1e6)} µs`;
  if (seconds < 0.9995) return `${threeDigits(seconds * 1e3)} ms`;
  return `${threeDigits(seconds)} s`;
}

/// One name for the same value of all repetitions of a block.
function withoutRepetition(name) { return name.replace(/\.\d+\./, '.*.'); }

function shareText(part, whole) { return whole > 0 ? `${(100 * part / whole).toFixed(1)}%` : '-'; }

function withCommas(value) { return Math.round(value).toLocaleString('en-US'); }

function largest(values) { return values.reduce((a, b) => Math.max(a, b), -Infinity); }

function smallest(values) { return values.reduce((a, b) => Math.min(a, b), Infinity); }

/// An element with attributes and children; strings become text, never markup.
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function byId(id) { return document.getElementById(id); }

/// The value of a custom property of page.css, by which canvases have the page's colours.
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name.toLowerCase()}`).trim();
}

function legendEntry(name, text) {
  const key = element('span', {class: 'key'});
  key.style.background = `var(--${name.toLowerCase()})`;
  return element('span', {}, key, text);
}
