// node generate.mjs ENDPOINT PROMPT OUTPUT [INPUT]: generate one image.

import { readFile, writeFile } from "node:fs/promises";
import { Client, ImagegenError } from "./imagegen.mjs";

const [endpoint, prompt, output, input] = process.argv.slice(2);
if (output === undefined) {
  console.error("usage: node generate.mjs ENDPOINT PROMPT OUTPUT [INPUT]");
  process.exit(2);
}
const client = new Client(endpoint);
try {
  const image = input === undefined ? undefined : await readFile(input);
  const onProgress = ({ state, step, steps, place }) =>
    console.error(state === "queued" ? `queued, ${place} requests ahead` : `step ${step} of ${steps}`);
  const { result, images } = await client.generate({ prompt, image, onProgress });
  await writeFile(output, images[0]);
  const { width, height, seed } = result.images[0];
  console.log(JSON.stringify({ width, height, seed: String(seed), worker: result.worker, bytes: images[0].length }));
} catch (error) {
  if (!(error instanceof ImagegenError)) throw error;
  console.error(`${error.code}: ${error.message}`);
  process.exitCode = 1;
} finally {
  await client.close();
}
