// The parameters of the selected model, from `/v1/models`; those of the API until a worker has loaded the model.

import { create, find, setText } from "./dom.js";
import { fields, isChoice, isNumber, of, ranges } from "./parameters.js";

/** Placeholder of a field for which the model has not reported its default. */
const UNKNOWN = "model's own";

let models = new Map();
let defaultModel = null;

/** Show the models of `/v1/models`. */
export function setModels(listed) {
  models = new Map(listed.map((model) => [model.id, model]));
  defaultModel = listed.find((model) => model.default)?.id ?? null;
  const select = find("model");
  const chosen = select.value;
  const others = listed.filter((model) => !model.default).map(({ id }) => new Option(id, id));
  const first = defaultModel === null ? [] : [new Option(`${defaultModel} (default)`, "")];
  select.replaceChildren(...first, ...others);
  if (!listed.length) select.append(new Option("No model available", ""));
  // Kept, as the model may return.
  if (chosen && !models.has(chosen)) select.append(new Option(`${chosen} (not available)`, chosen));
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
}

/** Return the parameters that the selected model accepts, by name. */
export function parameters() {
  return models.get(find("model").value || defaultModel)?.parameters ?? ranges();
}

/** Whether the selected model accepts a parameter. */
export const accepts = (name) => name in parameters();

/** Adapt the form to the selected model. */
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
  // Browsers count steps from the minimum, which is itself a multiple.
  field.step = multiple ?? (whole ? 1 : "any");
}

function offer(field, { default: own, enum: choices = [] }) {
  const others = choices.filter((name) => name !== own);
  const first = own ? `${shorten(own)} (default)` : UNKNOWN;
  setChoices(field, [["", first], ...others.map((name) => [name, shorten(name)])]);
}

/** Remove the common suffix of scheduler names. */
const shorten = (name) => name.replace(/(?<=.)Scheduler$/, "");

function setChoices(select, choices) {
  const chosen = select.value;
  select.replaceChildren(...choices.map(([value, text]) => new Option(text, value)));
  if (choices.some(([value]) => value === chosen)) select.value = chosen;
}

/** Select a value; add it as an option if it is missing, so that old requests can be repeated. */
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
  const box = create("input", { type: "checkbox", id: `lora-${index}`, value: name, checked: scale !== undefined });
  const label = create("label", { htmlFor: box.id, title: name }, name);
  const { min, max } = scaleRange();
  const number = create("input", { type: "number", step: "any", min, max, value: scale ?? 1 });
  number.setAttribute("aria-label", `Scale of ${name}`);
  number.setAttribute("inputmode", "decimal");
  number.disabled = scale === undefined;
  box.addEventListener("change", () => (number.disabled = !box.checked));
  return create("li", {}, box, label, number);
}

/** Return the selected LoRAs. */
export function loras() {
  const rows = [...find("loras-list").children];
  const chosen = rows.filter((row) => row.querySelector("[type=checkbox]").checked);
  return chosen.map((row) => ({
    name: row.querySelector("[type=checkbox]").value,
    scale: Number(row.querySelector("[type=number]").value),
  }));
}

/** Select exactly these LoRAs, except those that the model does not have. */
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

// ---- summary ----------------------------------------------------------------------------------------------

/** Show the main parameters in one line, for collapsed options. */
export function showDigest() {
  const value = (name) => (find(name).disabled ? "" : find(name).value.trim());
  const texts = [find("model").selectedOptions[0]?.textContent.replace(" (default)", "")];
  if (value("width") && value("height")) texts.push(`${value("width")}×${value("height")}`);
  if (value("num_inference_steps")) texts.push(`${value("num_inference_steps")} steps`);
  if (value("seed")) texts.push(`seed ${value("seed")}`);
  if (Number(value("n")) > 1) texts.push(`${value("n")} images`);
  setText(find("digest"), texts.filter(Boolean).join(", "));
}
