// The form: what is asked for, and what was wrong with it.

import { duration, find, say } from "./dom.js";
import { choose, chooseLoras, loras, parameters, scaleRange, showDigest, showModel, takes } from "./models.js";
import { fields, isNumber, valueOf } from "./parameters.js";

/** The largest integer that JavaScript represents exactly; the seed of the last image must not exceed it. */
const MAX_SEED = Number.MAX_SAFE_INTEGER;

let image = null;
let countdown = null;

/** Return the parameters whose fields count: some need an image to start from. */
const inUse = () => fields().filter(({ group }) => group !== "image" || image !== null);

/** Start from a picture, a `data:` URL; null: from none. */
export function setImage(url) {
  image = url;
  find("start-image").hidden = url === null;
  if (url === null) find("start-picture").removeAttribute("src");
  else find("start-picture").src = url;
  find("image").value = "";
  for (const { name, group } of fields()) if (group === "image") find(name).value = "";
  showModel();
}

/** Fill the fields in with parameters, and empty the others. */
export function fill(asked) {
  choose(find("model"), asked.model ?? "");
  // A model that is no longer there can't be chosen; then it is the default's turn.
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

/** Return what is asked for, and the picture to start from or null; null if a field is wrong, which is shown. */
export function readForm() {
  clearProblem();
  const wrong = check();
  if (wrong) {
    showProblem(wrong.message, wrong.name);
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
  // Without a seed the gateway draws one.
  if (value("seed")) asked.seed = Number(value("seed"));
  return { asked, image };
}

function check() {
  if (!find("prompt").value.trim()) return { name: "prompt", message: "Say what the picture should show." };
  if (image !== null && !takes("image")) return { name: "model", message: "This model starts from no picture." };
  for (const name of [...inUse().filter(isNumber).map((each) => each.name), "width", "height"]) {
    const field = find(name);
    if (!field.disabled && !field.validity.valid) return { name, message: `${label(name)}: ${range(field)}` };
  }
  if (Boolean(find("width").value) !== Boolean(find("height").value)) {
    const name = find("width").value ? "height" : "width";
    return { name, message: "Give both the width and the height, or neither." };
  }
  const most = parameters().loras?.max_items ?? Infinity;
  if (loras().length > most) return { name: "negative_prompt", message: `At most ${most} LoRAs at a time.` };
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

/** Say what is wrong, beside the field if it is one. */
export function showProblem(message, name = null) {
  const problem = find("problem");
  problem.hidden = false;
  say(problem, message);
  const field = name === "size" ? find("width") : name && find("compose").elements.namedItem(name);
  if (!(field instanceof HTMLElement)) return;
  for (let around = field.closest("details"); around; around = around.parentElement.closest("details")) {
    around.open = true;
  }
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", "problem");
  field.focus();
}

/** Say what an error of the API means for whoever asks, and when to come back. */
export function showError(error) {
  if (error.retryAfter === null) {
    showProblem(error.message, error.param);
    return;
  }
  const end = Date.now() + error.retryAfter * 1000;
  const what = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
  showProblem(`${what} Try again in ${duration(error.retryAfter)}.`);
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    say(find("generate"), left > 0 ? `Try again in ${left} s` : "Generate");
    find("generate").disabled = left > 0;
    if (left <= 0) clearProblem();
  };
  tick();
  countdown = setInterval(tick, 500);
}

/** Take back what was said to be wrong. */
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
export function asUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = Object.assign(new FileReader(), { onload: () => resolve(reader.result), onerror: reject });
    reader.readAsDataURL(blob);
  });
}
