// A client of the imagegen protocol, version 2. The numbers in comments are those of docs/protocol.md.

import { randomBytes, randomInt } from "node:crypto";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const VERSION = 2;
const MAX_FRAME_BYTES = 262_144;
const INLINE_BYTES = 16_384;
const MIN_WINDOW_BYTES = 8_192;
const DEFAULT_INTERVAL = 1.0;
const DEFAULT_LIVENESS = 3;

export class ImagegenError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const key = (id) => Buffer.from(id).toString("hex");
const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);
const seconds = () => performance.now() / 1000;

/** A payload on its way to us; it arrives in order. */
class Download {
  constructor(message) {
    this.message = message;
    this.sizes = message.frame_bytes.map(Number);
    this.total = sum(this.sizes);
    this.data = Buffer.alloc(this.total);
    this.received = 0;
    this.stalls = 0;
    this.restart();
  }

  /** Forget what was asked for and has not arrived. */
  restart() {
    this.asked = this.received;
    this.asks = [];
    this.activeAt = seconds();
  }

  /** Whether it is time to ask again. */
  isStalled(silence) {
    return seconds() > this.activeAt + silence * 2 ** Math.min(this.stalls, 4);
  }

  frames() {
    let start = 0;
    return this.sizes.map((size) => this.data.subarray(start, (start += size)));
  }
}

/** A client with one connection at a time. */
export class Client {
  #endpoint;
  #socket = null;
  #queue = [];
  #sending = false;
  #closed = false;
  #requests = new Map();
  #queries = new Map();
  #timer;

  constructor(endpoint) {
    this.#endpoint = endpoint;
    this.#connect();
    this.#timer = setInterval(() => this.#tick(), 20);
  }

  /** Generate images; resolves to the RESULT and its images, rejects with an ImagegenError. */
  generate({ prompt, image, model, timeoutSeconds, preview = false, onProgress, signal, ...options }) {
    const id = randomBytes(16);
    const body = { prompt, seed: randomInt(2 ** 48 - 1), ...options };
    if (image !== undefined) body.inputs = ["image"];
    const frames = [Buffer.from(encode(body)), ...(image === undefined ? [] : [image])];
    const request = { id, frames, model, timeoutSeconds, preview, onProgress, images: options.num_images ?? 1 };
    request.deadline = timeoutSeconds === undefined ? Infinity : seconds() + timeoutSeconds;
    return new Promise((resolve, reject) => {
      this.#requests.set(key(id), Object.assign(request, { resolve, reject }));
      signal?.addEventListener("abort", () => this.#cancel(request));
      if (this.#session !== null) this.#submit(request);
    });
  }

  /** Return the statistics of the broker. */
  statistics() {
    const id = randomBytes(16);
    return new Promise((resolve, reject) => {
      const query = { id, resolve, reject, sentAt: -Infinity };
      this.#queries.set(key(id), query);
      if (this.#session !== null) this.#ask(query);
    });
  }

  async close() {
    this.#closed = true;
    clearInterval(this.#timer);
    for (const each of [...this.#requests.values(), ...this.#queries.values()])
      each.reject(new ImagegenError("client_closed", "the client was closed"));
    this.#socket.linger = 1000;
    this.#send({ type: "goodbye" });
    while (this.#sending) await new Promise(setImmediate);
    this.#socket.close();
  }

  // ---- the connection --------------------------------------------------------------------------

  #session = null;
  #interval = DEFAULT_INTERVAL;
  #liveness = DEFAULT_LIVENESS;
  #window = INLINE_BYTES;
  #maxWindow = MIN_WINDOW_BYTES;
  #token = Buffer.alloc(0);
  #heardAt = 0;
  #beatAt = 0;

  /** Open a connection with a new routing id. */
  #connect() {
    this.#socket?.close();
    this.#socket = new Dealer({
      routingId: randomBytes(12).toString("base64"), // 16 characters
      maxMessageSize: MAX_FRAME_BYTES,
      linger: 0,
      sendHighWaterMark: 0,
      tcpKeepalive: 1,
      reconnectMaxInterval: 1000,
    });
    this.#socket.connect(this.#endpoint);
    this.#session = null;
    this.#interval = DEFAULT_INTERVAL;
    this.#liveness = DEFAULT_LIVENESS;
    this.#window = INLINE_BYTES;
    this.#token = Buffer.alloc(0);
    this.#queue = [];
    this.#heardAt = seconds();
    for (const request of this.#requests.values()) {
      request.accepted = false;
      request.download?.restart();
    }
    this.#heartbeat();
    this.#receive(this.#socket);
  }

  async #receive(socket) {
    try {
      for await (const [header, ...frames] of socket) if (socket === this.#socket) this.#handle(header, frames);
    } catch (error) {
      if (socket === this.#socket && !this.#closed) throw error;
    }
  }

  /** Send a message; ZeroMQ for Node sends one at a time. */
  #send(message, frames = []) {
    this.#queue.push([Buffer.from(encode({ v: VERSION, ...message }, { useBigInt64: true })), ...frames]);
    if (!this.#sending) this.#flush();
  }

  async #flush() {
    this.#sending = true;
    while (this.#queue.length > 0) {
      const socket = this.#socket;
      try {
        await socket.send(this.#queue.shift());
      } catch (error) {
        if (socket === this.#socket && !this.#closed) throw error;
      }
    }
    this.#sending = false;
  }

  #heartbeat() {
    this.#beatAt = seconds();
    this.#send({ type: "heartbeat", token: this.#token });
  }

  #tick() {
    const now = seconds();
    const silence = this.#interval * this.#liveness;
    if (now > this.#heardAt + silence) return this.#connect();
    if (now > this.#beatAt + this.#interval) this.#heartbeat();
    for (const request of [...this.#requests.values()]) {
      if (now > request.deadline) {
        this.#fail(request, new ImagegenError("deadline_exceeded", "timeout_seconds has passed"));
        if (this.#session !== null) this.#send({ type: "cancel", request_id: request.id }); // §11
      } else if (this.#session !== null && !request.accepted && now > request.sentAt + 2 * this.#interval)
        this.#submit(request);
      if (request.download?.isStalled(silence)) this.#fetchAgain(request.download);
    }
    for (const query of this.#queries.values()) {
      if (query.download?.isStalled(silence)) query.download = undefined; // the statistics may be gone
      if (this.#session !== null && !query.download && now > query.sentAt + 2 * this.#interval) this.#ask(query);
    }
  }

  // ---- messages of the broker ------------------------------------------------------------------

  #handle(header, frames) {
    let message;
    try {
      message = decode(header, { useBigInt64: true });
      if (message.v !== VERSION) throw new Error(`version ${message.v}`);
    } catch (error) {
      return console.error(`a message can't be read: ${error.message}`);
    }
    this.#heardAt = seconds();
    const request = message.request_id && this.#requests.get(key(message.request_id));
    switch (message.type) {
      case "heartbeat":
        return this.#onHeartbeat(message);
      case "accepted":
        for (const id of message.request_ids) this.#accept(this.#requests.get(key(id)));
        return;
      case "progress":
        if (message.token?.length) this.#token = message.token;
        if (message.token?.length) this.#heartbeat(); // confirm the preview
        this.#accept(request);
        return request?.onProgress?.({ state: "running", step: 0, steps: 0, ...message });
      case "fetch":
        return request && this.#serve(request, message);
      case "chunk":
        return this.#onChunk(request, message, frames);
      case "result":
        return this.#onResult(request, message, frames);
      case "error":
        return this.#onError(request, message);
      case "stats":
        return this.#onStats(message, frames);
      default:
        console.error(`a message of the unknown type ${message.type} was ignored`);
    }
  }

  #onHeartbeat(message) {
    this.#interval = Number(message.interval_seconds);
    this.#liveness = Number(message.liveness);
    this.#maxWindow = Math.max(MIN_WINDOW_BYTES, Number(message.fetch_window_bytes ?? 4_194_304));
    this.#window = Math.min(this.#window, this.#maxWindow);
    const session = `${key(message.epoch)} ${message.session}`;
    if (session === this.#session) return;
    this.#session = session;
    for (const request of this.#requests.values()) this.#submit(request);
    for (const query of this.#queries.values()) {
      query.download = undefined;
      this.#ask(query);
    }
  }

  #accept(request) {
    if (request && !request.isCancelled) request.accepted = true;
  }

  #onResult(request, message, frames) {
    if (!request) return this.#acknowledge(message.request_id);
    const sizes = message.frame_bytes?.length ? message.frame_bytes.map(Number) : frames.map((each) => each.length);
    const isValid = (image) => ["png", "jpeg", "webp"].includes(image.format) && image.width >= 0;
    if (sizes.length !== message.images.length || !message.images.every(isValid) || sizes.includes(0)) {
      this.#acknowledge(message.request_id);
      return this.#fail(request, new ImagegenError("protocol_error", "the RESULT can't be read"));
    }
    if (!message.frame_bytes?.length) return this.#finish(request, message, frames);
    request.accepted = true;
    if (!request.download || key(request.download.message.payload_id) !== key(message.payload_id))
      request.download = new Download(message);
    this.#fetch();
  }

  #onError(request, message) {
    const error = new ImagegenError(message.code, message.message);
    if (message.request_id) {
      this.#acknowledge(message.request_id);
      if (request) this.#fail(request, error);
    } else if (["unsupported_version", "unauthorized"].includes(message.code)) {
      for (const each of [...this.#requests.values()]) this.#fail(each, error);
    } else console.error(`${message.code}: ${message.message}`);
  }

  #onStats(message, frames) {
    const query = this.#queries.get(key(message.request_id));
    if (!query) return;
    if (message.frame_bytes?.length) {
      query.download ??= new Download(message);
      this.#fetch();
    } else {
      this.#queries.delete(key(query.id));
      query.resolve(decode(frames[0], { useBigInt64: true }));
    }
  }

  // ---- transfers -------------------------------------------------------------------------------

  /** Send the chunks that a FETCH asks for. */
  #serve(request, { payload_id, offset, length, chunk_bytes }) {
    this.#accept(request);
    if (key(payload_id) !== key(request.id)) return;
    const data = Buffer.concat(request.frames);
    const end = Math.min(Number(offset) + Number(length), data.length);
    const step = Number(chunk_bytes ?? MAX_FRAME_BYTES);
    for (let start = Number(offset); start < end; start += step) {
      const part = data.subarray(start, Math.min(start + step, end));
      this.#send({ type: "chunk", request_id: request.id, payload_id, offset: start }, [part]);
    }
  }

  #onChunk(request, message, frames) {
    if (message.token?.length) this.#token = message.token;
    const owner = request ?? this.#queries.get(key(message.request_id));
    const download = owner?.download;
    if (!download || key(download.message.payload_id) !== key(message.payload_id)) return;
    const [data] = frames;
    if (frames.length !== 1 || Number(message.offset) !== download.received || data.length === 0) return;
    if (download.received + data.length > download.total) return;
    data.copy(download.data, download.received);
    download.received += data.length;
    download.activeAt = seconds();
    download.stalls = 0;
    this.#measure(download);
    if (download.received < download.total) return this.#fetch();
    if (request) this.#finish(request, download.message, download.frames());
    else this.#onStats({ request_id: owner.id }, download.frames());
    this.#fetch();
  }

  /** Adapt the window to the time that a FETCH took. */
  #measure(download) {
    while (download.asks.length > 0 && download.received >= download.asks[0].end) {
      const took = seconds() - download.asks.shift().at;
      if (took > this.#interval) this.#window = Math.max(MIN_WINDOW_BYTES, this.#window / 2);
      else if (took < this.#interval / 4) this.#window = Math.min(this.#maxWindow, 2 * this.#window);
    }
  }

  #downloads() {
    return [...this.#requests.values(), ...this.#queries.values()].filter((each) => each.download);
  }

  /** Ask for what is missing, within the window. */
  #fetch() {
    const owners = this.#downloads();
    let outstanding = sum(owners.map(({ download }) => download.asked - download.received));
    for (const { id, download } of owners)
      while (download.asked < download.total) {
        const length = Math.min(Math.floor(this.#window / 2), download.total - download.asked);
        if (outstanding + length > this.#window) return;
        const { payload_id } = download.message;
        const chunk_bytes = Math.min(Math.max(4_096, Math.floor(this.#window / 2)), MAX_FRAME_BYTES);
        this.#send({
          type: "fetch", request_id: id, payload_id, offset: download.asked, length, chunk_bytes, token: this.#token,
        });
        if (download.asked === download.received) download.activeAt = seconds();
        download.asked += length;
        download.asks.push({ end: download.asked, at: seconds() });
        outstanding += length;
      }
  }

  #fetchAgain(download) {
    download.restart();
    download.stalls += 1;
    this.#window = Math.max(MIN_WINDOW_BYTES, this.#window / 2);
    this.#fetch();
  }

  // ---- messages to the broker ------------------------------------------------------------------

  /** Send SUBMIT, or CANCEL if the request is cancelled. */
  #submit(request) {
    request.sentAt = seconds();
    request.accepted = false;
    if (request.isCancelled) return this.#send({ type: "cancel", request_id: request.id });
    const sizes = request.frames.map((frame) => frame.length);
    const isInline = sum(sizes) <= INLINE_BYTES;
    const message = { type: "submit", request_id: request.id, images: request.images };
    if (request.model !== undefined) message.model = request.model;
    if (request.deadline < Infinity) message.timeout_seconds = Math.max(0.001, request.deadline - seconds());
    if (request.onProgress) message.progress = true;
    if (request.preview) message.preview = true;
    if (!isInline) message.frame_bytes = sizes;
    this.#send(message, isInline ? request.frames : []);
  }

  /** Ask for the statistics. */
  #ask(query) {
    query.sentAt = seconds();
    this.#send({ type: "stats", request_id: query.id });
  }

  #cancel(request) {
    if (!this.#requests.has(key(request.id))) return;
    request.isCancelled = true;
    if (this.#session !== null) this.#submit(request);
  }

  #acknowledge(id) {
    this.#send({ type: "ack", request_ids: [id], token: this.#token });
  }

  #finish(request, result, images) {
    this.#requests.delete(key(request.id));
    this.#acknowledge(request.id);
    request.resolve({ result, images });
  }

  #fail(request, error) {
    this.#requests.delete(key(request.id));
    request.reject(error);
  }
}
