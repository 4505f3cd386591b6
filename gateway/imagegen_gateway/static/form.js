// The form: its values, validation and errors.

import { showAspect, showAspects } from "./aspect.js";
import { duration, find, setText } from "./dom.js";
import { accepts, choose, chooseLoras, loras, parameters, scaleRange } from "./models.js";
import { showDigest, showModel } from "./models.js";
import { fields, isNumber, valueOf } from "./parameters.js";
import { hasStartImage, showStart, targetSize } from "./start_image.js";

/** The largest integer that JavaScript represents exactly; the seed of the last image must not exceed it. */
const MAX_SEED = Number.MAX_SAFE_INTEGER;

let countdown = null;
/** Whether the shown problem ends when the gateway answers again. */
let untilAnswer = false;

/** Return the parameters in use: some require a start image. */
const inUse = () => fields().filter(({ group }) => group !== "image" || hasStartImage());

/** Adapt the form to the selected model and the start image. */
export function adapt() {
  showModel();
  showAspects();
  showSizes();
}

/** Show the start image and the digest for the current size. */
export function showSizes() {
  showAspect();
  showStart();
  const own = { width: parameters().width?.default, height: parameters().height?.default };
  const size = hasStartImage() ? targetSize() : own;
  for (const name of ["width", "height"]) find(name).placeholder = size[name] ?? "auto";
  showSeed();
  showDigest();
}

function showSeed() {
  find("seed-lock").setAttribute("aria-pressed", String(find("seed").value.trim() !== ""));
}

/** Lock the seed to `last`, or to a random one if it is null; if the field has a seed, clear it. */
export function toggleSeed(last) {
  const field = find("seed");
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  field.value = field.value.trim() ? "" : (last ?? (high % 2 ** 20) * 2 ** 32 + low);
  showSeed();
  showDigest();
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
  adapt();
}

/** Return the parameters of the form, which may be invalid. */
export function readValues() {
  const value = (name) => (find(name).disabled ? "" : find(name).value.trim());
  const asked = { prompt: find("prompt").value };
  if (value("model")) asked.model = value("model");
  for (const parameter of inUse()) {
    const given = valueOf(parameter);
    if (given !== null) asked[parameter.name] = given;
  }
  if (value("width") || value("height")) asked.size = `${value("width")}x${value("height")}`;
  if (loras().length) asked.loras = loras();
  // Without a seed the gateway chooses one.
  if (value("seed")) asked.seed = Number(value("seed"));
  return asked;
}

/** Return the parameters of the form; if a field is invalid, show the problem and return null. */
export function readForm() {
  clearProblem();
  const problem = check();
  if (problem) showProblem(problem.message, problem.name);
  return problem ? null : readValues();
}

function check() {
  if (!find("prompt").value.trim()) return { name: "prompt", message: "Enter a prompt." };
  if (hasStartImage() && !accepts("image")) {
    return { name: "model", message: "This model does not accept a start image." };
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
  untilAnswer = false;
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
    untilAnswer = error.status === 0;
    return;
  }
  const end = Date.now() + error.retryAfter * 1000;
  const sentence = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
  showProblem(`${sentence} Try again in ${duration(error.retryAfter)}.`);
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    setText(find("generate-text"), `Try again in ${left} s`);
    find("generate").disabled = true;
    if (left <= 0) clearProblem();
  };
  tick();
  countdown = setInterval(tick, 500);
}

/** Hide the problem. */
export function clearProblem() {
  if (countdown !== null) {
    clearInterval(countdown);
    countdown = null;
    showSending(null);
  }
  untilAnswer = false;
  find("problem").hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    if (field.id === "prompt") field.setAttribute("aria-describedby", "prompt-hint");
    else field.removeAttribute("aria-describedby");
  }
}

/** Hide the problem, which the user is about to solve, unless a countdown is running. */
export function onEdit() {
  if (countdown === null) clearProblem();
}

/** Show on the button that a request is being sent, with the share of its body (0 to 1); null after the end. */
export function showSending(share) {
  const sending = share !== null;
  find("generate").disabled = sending;
  find("generate").setAttribute("aria-busy", String(sending));
  find("upload").hidden = !sending || share === 1;
  find("upload").value = share ?? 0;
  setText(find("generate-text"), !sending ? "Generate" : `Sending ${Math.round(share * 100)} %`);
}

/** Hide a problem that was only that the gateway did not answer. */
export function gatewayAnswers() {
  if (untilAnswer) clearProblem();
}
