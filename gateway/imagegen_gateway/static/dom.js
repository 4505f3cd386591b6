// Creation and lookup of elements, and texts.

export const find = (id) => document.getElementById(id);

/** Return a new element. `properties` that the element does not have become attributes. */
export function create(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Return a new SVG element. */
export function createSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set an element's text if it differs: screen readers repeat texts that are set again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Announce a text to screen readers. */
export function announce(text) {
  setText(find("announce"), text);
}

/** Return a duration with a rounded unit: `8 s`, `3 min`, `2 h`. */
export function duration(seconds) {
  if (seconds < 1) return "1 s";
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 100 * 60) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}
