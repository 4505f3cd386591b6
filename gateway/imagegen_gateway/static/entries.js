// What was made from this browser: ids and what was asked are kept here, all else is the gateway's.

import { ApiError, ask, follow, pause } from "./api.js";

const STORE = "imagegen-history";
const MOST = 200;
/** A browser opens few connections to one host: the jobs behind these are asked for in turn. */
const STREAMS = 3;
const POLL_MS = 2000;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);

const read = (name, otherwise) => {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
};

/** All entries, the newest first; `{ id, asked, job, preview }`, and the `image` it starts from until a reload. */
export class Entries {
  #streams = new Map();
  #onChange;
  #onLost;

  /** `onChange(entry, before)`: its job has changed, `before` is the one it was. `onLost(error)`: no answer. */
  constructor(onChange, onLost) {
    this.all = [];
    this.#onChange = onChange;
    this.#onLost = onLost;
  }

  /** Take up what was kept. Throws `ApiError`. */
  async load() {
    const kept = read(STORE, []);
    const listed = (await ask("v1/jobs?limit=100")).data;
    const known = new Map(listed.map((job) => [job.id, job]));
    const found = await Promise.all(kept.map(({ id }) => known.get(id) ?? lookUp(id)));
    const loaded = kept.map((entry, index) => ({ ...entry, job: found[index], preview: null }));
    this.all = loaded.filter((entry) => entry.job !== null);
    this.#save();
    this.#pump();
  }

  /** Have something made; return its entry. Throws `ApiError`. */
  async add(asked, image) {
    const job = await ask("v1/jobs", { method: "POST", body: image ? { ...asked, image } : asked });
    const entry = { id: job.id, asked, image, job, preview: null };
    this.all.unshift(entry);
    this.#save();
    this.#pump();
    return entry;
  }

  /** Cancel a job that has not ended. Throws `ApiError`. */
  async cancel(entry) {
    this.#set(entry, await ask(`v1/jobs/${entry.id}`, { method: "DELETE" }));
  }

  /** Forget entries. */
  forget(gone) {
    this.all = this.all.filter((entry) => !gone.includes(entry));
    this.#save();
  }

  /** Follow what has not ended; what is followed already goes on. */
  resume() {
    this.#pump();
  }

  /** Follow nothing until `resume`. */
  suspend() {
    for (const stream of this.#streams.values()) stream.abort();
    this.#streams.clear();
  }

  #save() {
    const kept = this.all.slice(0, MOST).map(({ id, asked }) => ({ id, asked }));
    localStorage.setItem(STORE, JSON.stringify(kept));
  }

  #set(entry, job) {
    const before = entry.job;
    if (ENDED.has(before.state)) return;
    entry.job = job;
    if (job.preview) entry.preview = job.preview;
    this.#onChange(entry, before);
  }

  #pump() {
    if (document.hidden) return;
    // The oldest come first at the fleet too.
    const waiting = this.all.filter((entry) => !ENDED.has(entry.job.state)).reverse();
    waiting.forEach((entry, index) => {
      if (this.#streams.has(entry.id) || (index >= STREAMS && this.#streams.has("others"))) return;
      if (index < STREAMS) this.#run(entry.id, (signal) => this.#follow(entry, signal));
      else this.#run("others", (signal) => this.#poll(signal));
    });
  }

  #run(name, work) {
    const stream = new AbortController();
    this.#streams.set(name, stream);
    work(stream.signal)
      .catch((error) => {
        if (stream.signal.aborted) return undefined;
        this.#onLost(error);
        return pause(POLL_MS, stream.signal).catch(() => {});
      })
      .finally(() => {
        if (this.#streams.get(name) === stream) this.#streams.delete(name);
        if (!stream.signal.aborted) setTimeout(() => this.#pump(), 200);
      });
  }

  async #follow(entry, signal) {
    while (!ENDED.has(entry.job.state)) {
      try {
        await follow(`v1/jobs/${entry.id}/events`, (_, job) => this.#set(entry, job), signal);
      } catch (error) {
        if (signal.aborted || !(error instanceof ApiError)) throw error;
        if (error.status === 404) return this.#set(entry, { ...entry.job, state: "failed", error });
        this.#onLost(error);
      }
      if (!ENDED.has(entry.job.state)) await pause(1000, signal);
    }
  }

  async #poll(signal) {
    const { data } = await ask("v1/jobs?limit=100", { signal });
    const jobs = new Map(data.map((job) => [job.id, job]));
    for (const entry of this.all) {
      if (jobs.has(entry.id) && !this.#streams.has(entry.id)) this.#set(entry, jobs.get(entry.id));
    }
    await pause(POLL_MS, signal);
  }
}

async function lookUp(id) {
  try {
    return await ask(`v1/jobs/${id}`);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}
