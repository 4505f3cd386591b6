// What the chosen model takes: ranges, defaults and choices, from `/v1/models`, or as far as the API itself goes.

import { find, make, say } from "./dom.js";
import { fields, isChoice, isNumber, of, ranges } from "./parameters.js";

const UNKNOWN = "model's own";

let models = new Map();
let defaultModel = null;

/** Offer the models of `/v1/models`. */
export function setModels(listed) {
  models = new Map(listed.map((model) => [model.id, model]));
  defaultModel = listed.find((model) => model.default)?.id ?? null;
  const select = find("model");
  const chosen = select.value;
  const others = listed.filter((model) => !model.default).map(({ id }) => new Option(id, id));
  const first = defaultModel === null ? [] : [new Option(`${defaultModel} (default)`, "")];
  select.replaceChildren(...first, ...others);
  if (!listed.length) select.append(new Option("None is served now", ""));
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
  showModel();
}

/** Return the chosen model's parameters by name; one that is not there it does not take. */
export function parameters() {
  return models.get(find("model").value || defaultModel)?.parameters ?? ranges();
}

/** Whether the chosen model takes a parameter. */
export const takes = (name) => name in parameters();

/** Fit the form to the chosen model. */
export function showModel() {
  const known = parameters();
  for (const name of ["width", "height"]) setNumber(find(name), known[name] ?? {}, true);
  for (const parameter of fields()) {
    const { name, kind } = parameter;
    const field = find(name);
    show(field.closest(".field"), name in known);
    if (isNumber(parameter)) setNumber(field, known[name] ?? {}, kind === "integer");
    else if (isChoice(parameter)) offer(field, known[name] ?? {});
  }
  show(find("start-choose"), "image" in known && find("start-image").hidden);
  find("image").disabled = !("image" in known);
  setLoras(known.loras?.enum ?? []);
}

function show(element, shown) {
  element.hidden = !shown;
  for (const field of element.querySelectorAll("input, select, textarea")) field.disabled = !shown;
}

function setNumber(field, range, whole) {
  const { default: own, minimum, exclusive_minimum: above, maximum, multiple_of: multiple } = range;
  field.placeholder = own ?? UNKNOWN;
  field.min = minimum ?? above ?? "";
  field.max = maximum ?? "";
  // A browser counts steps from the minimum, which is a multiple itself.
  field.step = multiple ?? (whole ? 1 : "any");
}

function offer(field, { default: own, enum: choices = [] }) {
  const others = choices.filter((name) => name !== own);
  const first = own ? `${shortly(own)} (default)` : UNKNOWN;
  setChoices(field, [["", first], ...others.map((name) => [name, shortly(name)])]);
}

/** All schedulers end alike. */
const shortly = (name) => name.replace(/(?<=.)Scheduler$/, "");

function setChoices(select, choices) {
  const chosen = select.value;
  select.replaceChildren(...choices.map(([value, text]) => new Option(text, value)));
  if (choices.some(([value]) => value === chosen)) select.value = chosen;
}

/** Choose something, and offer it if it is not offered: what was asked once may be asked again. */
export function choose(select, value) {
  if (value && ![...select.options].some((option) => option.value === value)) select.append(new Option(value, value));
  select.value = value;
}

// ---- LoRAs ------------------------------------------------------------------------------------------------

function setLoras(names) {
  const chosen = new Map(loras().map(({ name, scale }) => [name, scale]));
  find("loras").hidden = !names.length;
  find("loras-list").replaceChildren(...names.map((name, index) => loraRow(name, index, chosen.get(name))));
}

/** Return the range of the scale of a LoRA. */
export function scaleRange() {
  const scale = of("loras")?.fields.find(({ name }) => name === "scale");
  return { min: scale?.minimum, max: scale?.maximum };
}

function loraRow(name, index, scale) {
  const box = make("input", { type: "checkbox", id: `lora-${index}`, value: name, checked: scale !== undefined });
  const label = make("label", { htmlFor: box.id, title: name }, name);
  const { min, max } = scaleRange();
  const number = make("input", { type: "number", step: "any", min, max, value: scale ?? 1 });
  number.setAttribute("aria-label", `Scale of ${name}`);
  number.setAttribute("inputmode", "decimal");
  number.disabled = scale === undefined;
  box.addEventListener("change", () => (number.disabled = !box.checked));
  return make("li", {}, box, label, number);
}

/** Return the LoRAs that are chosen. */
export function loras() {
  const rows = [...find("loras-list").children];
  const chosen = rows.filter((row) => row.querySelector("[type=checkbox]").checked);
  return chosen.map((row) => ({
    name: row.querySelector("[type=checkbox]").value,
    scale: Number(row.querySelector("[type=number]").value),
  }));
}

/** Choose these LoRAs, as far as the model has them, and no others. */
export function chooseLoras(asked) {
  const scales = new Map((asked ?? []).map(({ name, scale }) => [name, scale]));
  for (const row of find("loras-list").children) {
    const box = row.querySelector("[type=checkbox]");
    const number = row.querySelector("[type=number]");
    box.checked = scales.has(box.value);
    number.disabled = !box.checked;
    number.value = scales.get(box.value) ?? 1;
  }
}

// ---- in a line --------------------------------------------------------------------------------------------

/** Say in a line what is asked for, for when the options are folded away. */
export function showDigest() {
  const value = (name) => (find(name).disabled ? "" : find(name).value.trim());
  const told = [find("model").selectedOptions[0]?.textContent.replace(" (default)", "")];
  if (value("width") && value("height")) told.push(`${value("width")}×${value("height")}`);
  if (value("num_inference_steps")) told.push(`${value("num_inference_steps")} steps`);
  if (value("seed")) told.push(`seed ${value("seed")}`);
  if (Number(value("n")) > 1) told.push(`${value("n")} pictures`);
  say(find("digest"), told.filter(Boolean).join(", "));
}
