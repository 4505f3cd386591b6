// The form: what is asked for, its ranges as the gateway's schema has them, and what was wrong with it.

import { defaults } from "./entries.js";
import { duration, find, say } from "./dom.js";

const NUMBERS = ["num_inference_steps", "guidance_scale", "n"];
const TEXTS = ["model", "negative_prompt", "scheduler"];
const DEFAULTED = ["width", "height", "num_inference_steps", "guidance_scale", "scheduler", "strength"];
const UNKNOWN = "model's own";
/** JavaScript has no larger whole numbers; the page takes its own seeds from the smaller ones below. */
const MAX_SEED = Number.MAX_SAFE_INTEGER;
const RANDOM_SEEDS = 2 ** 32;

let image = null;
let countdown = null;
let defaultModel = "";

/** Take the fields' ranges from the schema of a job. */
export function setRanges(openapi) {
  const properties = openapi.components.schemas.JobBody.properties;
  for (const name of [...NUMBERS, "strength"]) {
    const number = properties[name].anyOf[0];
    find(name).min = number.minimum ?? number.exclusiveMinimum;
    find(name).max = number.maximum ?? number.exclusiveMaximum;
  }
  find("prompt").maxLength = properties.prompt.maxLength;
}

/** Offer models; `first` is what a request takes that names none, null where it may not. */
export function setModels(names, first) {
  const select = find("model");
  const chosen = select.value;
  const others = names.filter((name) => name !== first).map((name) => new Option(name, name));
  select.replaceChildren(...(first === null ? [] : [new Option(`${first} (default)`, "")]), ...others);
  if (!names.length) select.append(new Option("None is served now", ""));
  defaultModel = first ?? "";
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
  showDefaults();
}

/** Show the chosen model's defaults where nothing is said, as far as they are known. */
export function showDefaults() {
  const known = defaults.of(find("model").value || defaultModel);
  for (const name of DEFAULTED) find(name).placeholder = known[name] ?? UNKNOWN;
}

/** Start from a picture, a `data:` URL; null: from none. */
export function setImage(url) {
  image = url;
  find("start-image").hidden = url === null;
  find("start-choose").hidden = url !== null;
  if (url === null) find("start-picture").removeAttribute("src");
  else find("start-picture").src = url;
  find("image").value = "";
  find("strength").value = "";
}

/** Fill the fields in with parameters, and empty the others. */
export function fill(parameters) {
  const names = ["prompt", ...TEXTS, ...NUMBERS, "strength", "seed"];
  for (const name of names) find(name).value = parameters[name] ?? "";
  const [width = "", height = ""] = (parameters.size ?? "").split("x");
  find("width").value = width;
  find("height").value = height;
  find("output_format").value = parameters.output_format ?? "png";
  // A model that is no longer there can't be chosen; then it is the default's turn.
  if (find("model").selectedIndex < 0) find("model").selectedIndex = 0;
  if (parameters.negative_prompt || parameters.scheduler) document.querySelector("#compose details").open = true;
  showDefaults();
}

/** Return what is asked for, and the picture to start from or null; null if a field is wrong, which is shown. */
export function readForm() {
  clearProblem();
  const wrong = check();
  if (wrong) {
    showProblem(wrong.message, wrong.name);
    return null;
  }
  const value = (name) => find(name).value.trim();
  const asked = { prompt: find("prompt").value, output_format: value("output_format") };
  for (const name of TEXTS) if (value(name)) asked[name] = value(name);
  for (const name of NUMBERS) if (value(name)) asked[name] = Number(value(name));
  if (value("width")) asked.size = `${value("width")}x${value("height")}`;
  if (image !== null && value("strength")) asked.strength = Number(value("strength"));
  asked.seed = value("seed") ? Number(value("seed")) : randomSeed();
  return { asked, image };
}

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % RANDOM_SEEDS;

function check() {
  if (!find("prompt").value.trim()) return { name: "prompt", message: "Say what the picture should show." };
  for (const name of [...NUMBERS, "width", "height", ...(image === null ? [] : ["strength"])]) {
    const field = find(name);
    if (!field.validity.valid) return { name, message: `${label(name)}: ${range(field)}` };
  }
  if (Boolean(find("width").value) !== Boolean(find("height").value)) {
    const name = find("width").value ? "height" : "width";
    return { name, message: "Give both the width and the height, or neither." };
  }
  const seed = find("seed").value.trim();
  if (seed && !(/^\d+$/.test(seed) && Number(seed) <= MAX_SEED)) {
    return { name: "seed", message: `Seed: a whole number from 0 to ${MAX_SEED}.` };
  }
  return null;
}

const label = (name) => document.querySelector(`label[for="${name}"]`).textContent;

function range(field) {
  const kind = field.step === "any" ? "a number" : "a whole number";
  return field.max ? `${kind} from ${field.min} to ${field.max}.` : `${kind}.`;
}

/** Say what is wrong, beside the field if it is one. */
export function showProblem(message, name = null) {
  const problem = find("problem");
  problem.hidden = false;
  say(problem, message);
  const field = name === "size" ? find("width") : name && find("compose").elements.namedItem(name);
  if (!(field instanceof HTMLElement)) return;
  field.closest("details")?.setAttribute("open", "");
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
