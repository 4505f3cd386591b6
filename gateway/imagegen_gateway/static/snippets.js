// A request as a command for curl and as a Python program.

import { key, urlOf } from "./api.js";

/** Parameters of jobs that OpenAI's Python client has arguments for. */
const ARGUMENTS = new Set(["prompt", "model", "n", "size", "output_format", "output_compression"]);

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const base = () => urlOf("v1").href;

/** Return a shell command that generates an image again; it reads `start.png` and `mask.png` if it has `inputs`. */
export function curlOf(asked, inputs, format = "png") {
  const header = key.get() ? ' -H "Authorization: Bearer $IMAGEGEN_KEY"' : "";
  const decode = `| jq -r '.data[0].b64_json' | base64 -d > image.${format}`;
  if (inputs === null) {
    const body = `-H 'Content-Type: application/json' -d ${quote(JSON.stringify(asked))}`;
    return `curl -s ${quote(`${base()}/images/generations`)}${header} ${body} ${decode}`;
  }
  const files = `-F image=@start.png${inputs.mask ? " -F mask=@mask.png" : ""}`;
  const fields = Object.entries(asked).map(([name, value]) => {
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    return `--form-string ${quote(`${name}=${text}`)}`;
  });
  return `curl -s ${quote(`${base()}/images/edits`)}${header} ${files} ${fields.join(" ")} ${decode}`;
}

/** Return a Python program with OpenAI's client that generates an image again. */
export function pythonOf(asked, inputs, format = "png") {
  const given = Object.entries(asked).filter(([name]) => ARGUMENTS.has(name));
  const extra = Object.entries(asked).filter(([name]) => !ARGUMENTS.has(name));
  const lines = given.map(([name, value]) => `    ${name}=${literal(value)},`);
  if (inputs !== null) lines.push('    image=open("start.png", "rb"),');
  if (inputs?.mask) lines.push('    mask=open("mask.png", "rb"),');
  // Forms have objects as JSON.
  const ofForm = ([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : value];
  const fields = Object.fromEntries(inputs === null ? extra : extra.map(ofForm));
  if (extra.length) lines.push(`    extra_body=${literal(fields)},`);
  const secret = key.get() ? 'os.environ["IMAGEGEN_KEY"]' : '"none"';
  return [
    "import base64",
    ...(key.get() ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(base())}, api_key=${secret})`,
    `response = client.images.${inputs === null ? "generate" : "edit"}(`,
    ...lines,
    ")",
    `Path("image.${format}").write_bytes(base64.b64decode(response.data[0].b64_json))`,
    "",
  ].join("\n");
}

/** Return a JSON value as a Python literal. */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
