// The gateway's API: requests with the key of this tab, errors, and streams of events.

const KEY = "imagegen-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** An answer that is an error; `status` 0: there was no answer. `retryAfter` in seconds, or null. */
export class ApiError extends Error {
  constructor(status, { code = null, message, param = null }, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** Return a path of the gateway, wherever a proxy has put it. */
export const at = (path) => new URL(path, document.baseURI);

async function request(path, { method = "GET", body, signal, headers = {} } = {}) {
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const text = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(at(path), { method, headers, signal, body: text });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, { message: "The gateway does not answer." });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const wait = Number(response.headers.get("Retry-After")) || null;
  try {
    return new ApiError(response.status, (await response.json()).error, wait);
  } catch {
    const message = `The gateway answered with status ${response.status}.`;
    return new ApiError(response.status, { message }, wait);
  }
}

/** Return the JSON of an answer. Throws `ApiError`. */
export async function ask(path, options) {
  return (await request(path, options)).json();
}

/** Call `on(name, data)` with each event of a stream until it ends. Throws `ApiError`. */
export async function follow(path, on, signal) {
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
      throw new ApiError(0, { message: "The connection to the gateway is lost." });
    }
    if (read.done) return;
    const lines = (text + read.value).split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (line.startsWith("event: ")) name = line.slice(7).trim();
      else if (line.startsWith("data: ")) on(name, JSON.parse(line.slice(6)));
    }
  }
}

/** Wait; ends early, with an error, when the signal says so. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
