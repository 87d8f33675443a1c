// Elements. Text of the model only ever becomes a text node or an attribute.

const SVG = "http://www.w3.org/2000/svg";

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// Colour of cells that are filled to `share`, 0..1; the two ends are set by the colour scheme.
function shade(share) {
  const part = Math.round(100 * Math.min(1, Math.max(0, share)));
  return `color-mix(in oklab, var(--full) ${part}%, var(--empty))`;
}

function number(value) {
  return value.toLocaleString("en-US");
}

function short(value) {
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${(value / size).toFixed(1)}${unit}`;
  }
  return Number.isInteger(value) ? `${value}` : Number(value.toPrecision(4)).toString();
}
