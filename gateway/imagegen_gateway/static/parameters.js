// The declared parameters of a request, and the fields of the form that are made from them.

import { find, make } from "./dom.js";

/** Longer texts get several lines. */
const ONE_LINE = 1000;

let declared = [];

/** Take the declaration from the schema of a job, and make the fields. */
export function setDeclared(openapi) {
  declared = openapi.components.schemas.JobBody["x-parameters"];
  find("prompt").maxLength = of("prompt").max_length;
  for (const parameter of fields()) if (!find(parameter.name)) place(parameter, makeField(parameter));
}

/** Return a parameter by its name in the API. */
export const of = (name) => declared.find((parameter) => parameter.name === name);

/** Return the parameters whose fields are made from the declaration. */
export const fields = () => declared.filter(({ group }) => group);

/** Whether values are numbers. */
export const isNumber = ({ kind }) => kind === "integer" || kind === "number";

/** Whether a value is chosen from a list, the parameter's own or the model's. */
export const isChoice = ({ enum: choices, choices_by_model: byModel }) => choices !== undefined || byModel;

/** Return the ranges that hold for every model, by name. */
export const ranges = () => Object.fromEntries(declared.filter(({ listed }) => listed).map((each) => [each.name, each]));

/** Return the labels of the parameters that an image is shown with, by name. */
export function labels() {
  const shown = declared.filter(({ name, group }) => (group && name !== "n") || name === "seed");
  return { model: "Model", size: "Size", ...Object.fromEntries(shown.map(({ name, label }) => [name, label])) };
}

function makeField(parameter) {
  const { name, label, description } = parameter;
  const look = { id: name, name, title: description };
  let input;
  if (isNumber(parameter)) {
    input = make("input", { ...look, type: "number", inputmode: parameter.kind === "integer" ? "numeric" : "decimal" });
  } else if (isChoice(parameter)) input = make("select", look);
  else if (parameter.kind === "boolean") {
    input = make("select", look, new Option("", ""), new Option("yes", "true"), new Option("no", "false"));
  } else if (isLong(parameter)) input = make("textarea", { ...look, rows: 2, maxLength: parameter.max_length });
  else input = make("input", { ...look, type: "text", maxLength: parameter.max_length });
  return make("div", { className: "field" }, make("label", { htmlFor: name }, label), input);
}

const isLong = ({ kind, max_length: longest }) => kind === "string" && longest >= ONE_LINE;

function place(parameter, field) {
  if (parameter.group === "image") find("fields-image").append(field);
  else if (parameter.group === "main") find("seed").closest(".field").before(field);
  else if (isLong(parameter)) find("fields-more").before(field);
  else find("fields-more").append(field);
}

/** Return what a field says, as the API takes it; null: nothing. */
export function valueOf(parameter) {
  const field = find(parameter.name);
  const text = field.disabled ? "" : field.value.trim();
  if (!text) return null;
  if (parameter.kind === "boolean") return text === "true";
  return isNumber(parameter) ? Number(text) : text;
}
