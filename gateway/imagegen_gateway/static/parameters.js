// The declared parameters of a request, and the form fields that are created from them.

import { create, find } from "./dom.js";

/** Maximum length of texts with a one-line field. */
const ONE_LINE = 1000;

/** Advice on values, for fields whose description does not suffice. */
const HELP = {
  num_inference_steps:
    "More steps take longer and add detail, up to a point. An empty field uses the model's own number.",
  guidance_scale:
    "Low values leave the model free; high values follow the prompt closely, at the cost of variety and natural " +
    "colours. Most models work best from 3 to 8; distilled models ignore it or need about 1.",
  strength:
    "How much of the start image may change: 0.3 keeps its composition and colours, 0.6 its rough shapes, 1 nothing. " +
    "With a mask it applies to the painted areas.",
};

let declared = [];

/** Read the declaration from the schema of a job and create the fields. */
export function setDeclared(openapi) {
  declared = openapi.components.schemas.JobBody["x-parameters"];
  find("prompt").maxLength = of("prompt").max_length;
  for (const parameter of fields()) if (!find(parameter.name)) place(parameter, createField(parameter));
}

/** Return a parameter by its name in the API. */
export const of = (name) => declared.find((parameter) => parameter.name === name);

/** Return the parameters whose fields are created from the declaration. */
export const fields = () => declared.filter(({ group }) => group);

/** Whether values are numbers. */
export const isNumber = ({ kind }) => kind === "integer" || kind === "number";

/** Whether values are selected from a list of the parameter or of the model. */
export const isChoice = ({ enum: choices, choices_by_model: byModel }) => choices !== undefined || byModel;

/** Return the ranges that apply to all models, by name. */
export const ranges = () => Object.fromEntries(declared.filter(({ listed }) => listed).map((p) => [p.name, p]));

/** Return the labels of the parameters shown with an image, by name. */
export function labels() {
  const shown = declared.filter(({ name, group }) => (group && name !== "n") || name === "seed");
  return { model: "Model", size: "Size", ...Object.fromEntries(shown.map(({ name, label }) => [name, label])) };
}

function createField(parameter) {
  const { name, label, description } = parameter;
  const properties = { id: name, name, title: description };
  let input;
  if (isNumber(parameter)) {
    const inputmode = parameter.kind === "integer" ? "numeric" : "decimal";
    input = create("input", { ...properties, type: "number", inputmode });
  } else if (isChoice(parameter)) input = create("select", properties);
  else if (parameter.kind === "boolean") {
    input = create("select", properties, new Option("", ""), new Option("yes", "true"), new Option("no", "false"));
  } else if (isLong(parameter)) input = create("textarea", { ...properties, rows: 2, maxLength: parameter.max_length });
  else input = create("input", { ...properties, type: "text", maxLength: parameter.max_length });
  const heading = create("div", { className: "label" }, create("label", { htmlFor: name }, label));
  if (HELP[name]) heading.append(...createHelp(name, label));
  return create("div", { className: "field" }, heading, input);
}

function createHelp(name, label) {
  const text = create("p", { id: `${name}-help`, className: "help", popover: "auto" }, HELP[name]);
  const properties = { type: "button", className: "help-open", "aria-label": `Help: ${label}` };
  const button = create("button", { ...properties, popoverTargetElement: text }, "?");
  text.addEventListener("beforetoggle", () => {
    const { left, bottom } = button.getBoundingClientRect();
    text.style.left = `${Math.max(16, Math.min(left, innerWidth - 304))}px`;
    text.style.top = `${bottom + 6}px`;
  });
  return [button, text];
}

const isLong = ({ kind, max_length: longest }) => kind === "string" && longest >= ONE_LINE;

function place(parameter, field) {
  if (parameter.group === "image") find("fields-image").append(field);
  else if (parameter.group === "main") find("seed").closest(".field").before(field);
  else if (isLong(parameter)) find("fields-more").before(field);
  else find("fields-more").append(field);
}

/** Return the value of a field for the API, or null if it is empty. */
export function valueOf(parameter) {
  const field = find(parameter.name);
  const text = field.disabled ? "" : field.value.trim();
  if (!text) return null;
  if (parameter.kind === "boolean") return text === "true";
  return isNumber(parameter) ? Number(text) : text;
}
