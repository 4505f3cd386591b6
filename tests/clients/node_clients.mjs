// All uses of one client for Node, printed as JSON: node node_clients.mjs CLIENT BASE_URL KEY LIMITED_KEY IMAGE

import { createReadStream, readFileSync } from "node:fs";

import { createOpenAI } from "@ai-sdk/openai";
import { DallEAPIWrapper } from "@langchain/openai";
import { generateImage } from "ai";
import OpenAI from "openai";

const [client, baseURL, key, limitedKey, image] = process.argv.slice(2);
const model = "gpt-image-1";
const size = "64x64";

/** Return format and size of a PNG. */
function describe(data) {
  const bytes = Buffer.from(data);
  return { format: bytes.toString("latin1", 1, 4), size: [bytes.readUInt32BE(16), bytes.readUInt32BE(20)] };
}

const decode = (base64) => describe(Buffer.from(base64, "base64"));

function openai(apiKey) {
  const api = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  return {
    async generate() {
      return decode((await api.images.generate({ prompt: "a cat", model, size })).data[0].b64_json);
    },
    async edit() {
      const sent = createReadStream(image);
      return decode((await api.images.edit({ image: sent, prompt: "a dog", model })).data[0].b64_json);
    },
    async models() {
      return { names: (await api.models.list()).data.map(({ id }) => id) };
    },
    async stream() {
      const events = await api.images.generate({ prompt: "a cat", size, stream: true, partial_images: 1 });
      let last;
      for await (const event of events) last = event;
      return { ...decode(last.b64_json), type: last.type };
    },
    async invalid() {
      await api.images.generate({ prompt: "a cat", n: 99 });
    },
  };
}

function aiSdk(apiKey) {
  const provider = createOpenAI({ baseURL, apiKey });
  const options = { model: provider.image(model), maxRetries: 0 };
  return {
    async generate() {
      return describe((await generateImage({ ...options, size, prompt: "a cat" })).image.uint8Array);
    },
    async edit() {
      const prompt = { text: "a dog", images: [readFileSync(image)] };
      return describe((await generateImage({ ...options, prompt })).image.uint8Array);
    },
    async invalid() {
      await generateImage({ ...options, size: "9999x9999", prompt: "a cat" });
    },
  };
}

function langchain(apiKey) {
  const tool = (options) => new DallEAPIWrapper({ baseUrl: baseURL, apiKey, model: "dall-e-3", size, ...options });
  return {
    async generate() {
      return describe(await (await fetch(await tool({}).invoke("a cat"))).arrayBuffer());
    },
    async invalid() {
      await tool({ size: "big" }).invoke("a cat");
    },
  };
}

const CLIENTS = { openai, "ai-sdk": aiSdk, langchain };

async function run(use, apiKey) {
  try {
    return await CLIENTS[client](apiKey)[use]();
  } catch (error) {
    const headers = error.headers ?? error.responseHeaders ?? {};
    return {
      error: {
        kinds: [error.constructor.name],
        status: error.status ?? error.statusCode,
        message: error.message,
        request_id: error.requestID ?? headers["x-request-id"],
        retry_after: headers.get?.("retry-after") ?? headers["retry-after"],
      },
    };
  }
}

const outcomes = {};
for (const use of Object.keys(CLIENTS[client](key))) outcomes[use] = await run(use, key);
// With a key that has reached its rate; langchain's client waits for Retry-After, and can't be told otherwise.
if (client !== "langchain") outcomes.limited = await run("generate", limitedKey);
console.log(JSON.stringify(outcomes));
