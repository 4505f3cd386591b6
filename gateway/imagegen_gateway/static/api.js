// The gateway's API: requests with the key of this tab, errors and event streams.

const KEY = "imagegen-key";
const UNREACHABLE = "The gateway does not answer.";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** An error response; `status` is 0 without a response. `retryAfter` is in seconds, or null. */
export class ApiError extends Error {
  constructor(status, { code = null, message, param = null }, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** Return the URL of a path of the gateway, relative to the page, for proxies with a path prefix. */
export const urlOf = (path) => new URL(path, document.baseURI);

async function request(path, { method = "GET", body, signal, headers = {} } = {}) {
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const text = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(urlOf(path), { method, headers, signal, body: text });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, { message: UNREACHABLE });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  return errorOf(response.status, await response.text(), response.headers.get("Retry-After"));
}

function errorOf(status, text, retryAfter) {
  const wait = Number(retryAfter) || null;
  try {
    return new ApiError(status, JSON.parse(text).error, wait);
  } catch {
    return new ApiError(status, { message: `The gateway answered with status ${status}.` }, wait);
  }
}

/** Return the URL of an image relative to the page, as the host of `image.url` may differ. */
export const fileOf = (image) => urlOf(`v1/files/${image.url.split("/").pop()}`).href;

/** Return the file of an image. Throws `Error` if the gateway has deleted it or does not answer. */
export async function fetchImage(image) {
  const response = await fetch(fileOf(image));
  if (!response.ok) throw new Error("This image has expired.");
  return response.blob();
}

/** Send a request and return its JSON. Throws `ApiError`. */
export async function fetchJson(path, options) {
  return (await request(path, options)).json();
}

/**
 * Send a body as JSON and return the JSON of the response. Throws `ApiError`.
 * `onProgress(share)` is called with the share of the body that was sent, 0 to 1; `fetch` does not report it.
 */
export function postJson(path, body, onProgress) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", urlOf(path));
    sending.setRequestHeader("Content-Type", "application/json");
    if (key.get()) sending.setRequestHeader("Authorization", `Bearer ${key.get()}`);
    sending.upload.onprogress = ({ loaded, total }) => onProgress(total ? loaded / total : 1);
    sending.onerror = () => reject(new ApiError(0, { message: UNREACHABLE }));
    sending.onload = () => {
      const { status, responseText: text } = sending;
      if (status >= 200 && status < 300) resolve(JSON.parse(text));
      else reject(errorOf(status, text, sending.getResponseHeader("Retry-After")));
    };
    sending.send(JSON.stringify(body));
  });
}

/** Call `onEvent(name, data)` for each event of a stream until it ends. Throws `ApiError`. */
export async function followEvents(path, onEvent, signal) {
  const response = await request(path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let name = "message";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, { message: "The connection to the gateway was lost." });
    }
    if (read.done) return;
    const lines = (text + read.value).split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (line.startsWith("event: ")) name = line.slice(7).trim();
      else if (line.startsWith("data: ")) onEvent(name, JSON.parse(line.slice(6)));
    }
  }
}

/** Wait; rejects when the signal is aborted. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
