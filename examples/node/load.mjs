// node load.mjs ENDPOINT: send requests of all kinds, whatever their answers, until the input ends.

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Client, ImagegenError } from "./imagegen.mjs";

const client = new Client(process.argv[2]);
let stopping = false;

async function repeat(action) {
  while (!stopping) {
    try {
      await action();
    } catch (error) {
      if (!(error instanceof ImagegenError)) throw error;
    }
    await sleep(10);
  }
}

async function cancelled() {
  const abort = new AbortController();
  setTimeout(() => abort.abort(), 1000);
  await client.generate({ prompt: "a red circle", signal: abort.signal });
}

const image = Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), randomBytes(120_000)]);
const actions = [
  () => client.generate({ prompt: "a red circle", timeoutSeconds: 300, preview: true, onProgress: () => {} }),
  () => client.generate({ prompt: "a red circle", image }),
  cancelled,
  () => client.statistics(),
];
process.stdin.resume();
process.stdin.on("end", async () => {
  stopping = true;
  await client.close();
  process.exit(0);
});
await Promise.all(actions.map(repeat));
