// The form: its values, validation and errors.

import { duration, find, setText } from "./dom.js";
import { accepts, choose, chooseLoras, loras, parameters, scaleRange, showDigest, showModel } from "./models.js";
import { fields, isNumber, valueOf } from "./parameters.js";

/** The largest integer that JavaScript represents exactly; the seed of the last image must not exceed it. */
const MAX_SEED = Number.MAX_SAFE_INTEGER;

let image = null;
let countdown = null;

/** Return the parameters in use: some require an input image. */
const inUse = () => fields().filter(({ group }) => group !== "image" || image !== null);

/** Set the input image, a `data:` URL, or remove it with null. */
export function setImage(url) {
  image = url;
  find("input-image").hidden = url === null;
  if (url === null) find("input-preview").removeAttribute("src");
  else find("input-preview").src = url;
  find("image").value = "";
  for (const { name, group } of fields()) if (group === "image") find(name).value = "";
  showModel();
}

/** Fill in the form with parameters; clear all other fields. */
export function fill(asked) {
  choose(find("model"), asked.model ?? "");
  // Falls back to the default if the model is no longer served.
  if (find("model").selectedIndex < 0) find("model").selectedIndex = 0;
  showModel();
  for (const name of ["prompt", "seed"]) find(name).value = asked[name] ?? "";
  const [width = "", height = ""] = (asked.size ?? "").split("x");
  find("width").value = width;
  find("height").value = height;
  for (const parameter of fields()) {
    const field = find(parameter.name);
    const value = String(asked[parameter.name] ?? "");
    if (field instanceof HTMLSelectElement) choose(field, value);
    else field.value = value;
    if (value && parameter.group === "more") find("more").open = true;
  }
  chooseLoras(asked.loras);
  if (asked.loras) find("more").open = true;
  showDigest();
}

/** Return the parameters and the input image or null; if a field is invalid, show the problem and return null. */
export function readForm() {
  clearProblem();
  const problem = check();
  if (problem) {
    showProblem(problem.message, problem.name);
    return null;
  }
  const value = (name) => (find(name).disabled ? "" : find(name).value.trim());
  const asked = { prompt: find("prompt").value };
  if (value("model")) asked.model = value("model");
  for (const parameter of inUse()) {
    const given = valueOf(parameter);
    if (given !== null) asked[parameter.name] = given;
  }
  if (value("width")) asked.size = `${value("width")}x${value("height")}`;
  if (loras().length) asked.loras = loras();
  // Without a seed the gateway chooses one.
  if (value("seed")) asked.seed = Number(value("seed"));
  return { asked, image };
}

function check() {
  if (!find("prompt").value.trim()) return { name: "prompt", message: "Enter a prompt." };
  if (image !== null && !accepts("image")) {
    return { name: "model", message: "This model does not accept an input image." };
  }
  for (const name of [...inUse().filter(isNumber).map((each) => each.name), "width", "height"]) {
    const field = find(name);
    if (!field.disabled && !field.validity.valid) return { name, message: `${label(name)}: ${range(field)}` };
  }
  if (Boolean(find("width").value) !== Boolean(find("height").value)) {
    const name = find("width").value ? "height" : "width";
    return { name, message: "Enter both width and height, or neither." };
  }
  const maximum = parameters().loras?.max_items ?? Infinity;
  if (loras().length > maximum) return { name: "negative_prompt", message: `Maximum number of LoRAs: ${maximum}.` };
  if (document.querySelector("#loras-list :invalid")) {
    const { min, max } = scaleRange();
    return { name: "negative_prompt", message: `The scale of a LoRA: a number from ${min} to ${max}.` };
  }
  const seed = find("seed").value.trim();
  const largest = MAX_SEED - Math.max(0, Number(find("n").value) - 1);
  if (seed && !(/^\d+$/.test(seed) && Number(seed) <= largest)) {
    return { name: "seed", message: `Seed: a whole number from 0 to ${largest}.` };
  }
  return null;
}

const label = (name) => document.querySelector(`label[for="${name}"]`).textContent;

function range(field) {
  const kinds = { any: "a number", 1: "a whole number" };
  const kind = kinds[field.step] ?? `a multiple of ${field.step}`;
  return field.max ? `${kind} from ${field.min} to ${field.max}.` : `${kind}.`;
}

/** Show a problem, and focus its field if it has one. */
export function showProblem(message, name = null) {
  const problem = find("problem");
  problem.hidden = false;
  setText(problem, message);
  const field = name === "size" ? find("width") : name && find("compose").elements.namedItem(name);
  if (!(field instanceof HTMLElement)) return;
  for (let around = field.closest("details"); around; around = around.parentElement.closest("details")) {
    around.open = true;
  }
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", "problem");
  field.focus();
}

/** Show an error of the API, with a countdown if the request can be retried. */
export function showError(error) {
  if (error.retryAfter === null) {
    showProblem(error.message, error.param);
    return;
  }
  const end = Date.now() + error.retryAfter * 1000;
  const sentence = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
  showProblem(`${sentence} Try again in ${duration(error.retryAfter)}.`);
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    setText(find("generate"), left > 0 ? `Try again in ${left} s` : "Generate");
    find("generate").disabled = left > 0;
    if (left <= 0) clearProblem();
  };
  tick();
  countdown = setInterval(tick, 500);
}

/** Hide the problem. */
export function clearProblem() {
  clearInterval(countdown);
  find("problem").hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    if (field.id === "prompt") field.setAttribute("aria-describedby", "prompt-hint");
    else field.removeAttribute("aria-describedby");
  }
}

/** Return a file or blob as a `data:` URL. */
export function toDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = Object.assign(new FileReader(), { onload: () => resolve(reader.result), onerror: reject });
    reader.readAsDataURL(blob);
  });
}
