// Elements, made and found.

export const find = (id) => document.getElementById(id);

/** Return a new element; `properties` that it has are set, the others become attributes. */
export function make(tag, properties = {}, ...children) {
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

/** Return a new element of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set an element's text, unless it is there already: what is said again would be read out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Have a screen reader say something when it has said the rest. */
export function announce(text) {
  say(find("announce"), text);
}

/** Return seconds as people say them: `8 s`, `3 min`, `2 h`. */
export function duration(seconds) {
  if (seconds < 1) return "1 s";
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 100 * 60) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}
