// The history of this browser: it stores the ids and parameters of jobs; their states are the gateway's.

import { ApiError, fetchJson, followEvents, pause } from "./api.js";

const STORE = "imagegen-history";
const MAX_ENTRIES = 200;
/** Maximum number of event streams, as browsers limit connections per host; other jobs are polled. */
const MAX_STREAMS = 3;
const POLL_MS = 2000;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);

const readStored = () => {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? [];
  } catch {
    return [];
  }
};

/**
 * All entries, newest first: `{ id, asked, job, preview }`, where `asked` are the parameters.
 * `image`, the input image, is lost at a reload.
 */
export class Entries {
  #streams = new Map();
  #onChange;
  #onError;

  /** `onChange(entry, before)` is called with the previous job; `onError(error)` after failed requests. */
  constructor(onChange, onError) {
    this.all = [];
    this.#onChange = onChange;
    this.#onError = onError;
  }

  /** Load the stored entries and their jobs. Throws `ApiError`. */
  async load() {
    const stored = readStored();
    const listed = (await fetchJson("v1/jobs?limit=100")).data;
    const known = new Map(listed.map((job) => [job.id, job]));
    const jobs = await Promise.all(stored.map(({ id }) => known.get(id) ?? fetchJob(id)));
    const loaded = stored.map((entry, index) => ({ ...entry, job: jobs[index], preview: null }));
    this.all = loaded.filter((entry) => entry.job !== null);
    this.#save();
    this.#update();
  }

  /** Create a job; return its entry. Throws `ApiError`. */
  async add(asked, image) {
    const job = await fetchJson("v1/jobs", { method: "POST", body: image ? { ...asked, image } : asked });
    const entry = { id: job.id, asked, image, job, preview: null };
    this.all.unshift(entry);
    this.#save();
    this.#update();
    return entry;
  }

  /** Cancel a job that has not ended. Throws `ApiError`. */
  async cancel(entry) {
    this.#set(entry, await fetchJson(`v1/jobs/${entry.id}`, { method: "DELETE" }));
  }

  /** Remove entries from the history. */
  remove(removed) {
    this.all = this.all.filter((entry) => !removed.includes(entry));
    this.#save();
  }

  /** Follow all jobs that have not ended. */
  resume() {
    this.#update();
  }

  /** Close all streams until `resume`. */
  suspend() {
    for (const stream of this.#streams.values()) stream.abort();
    this.#streams.clear();
  }

  #save() {
    const stored = this.all.slice(0, MAX_ENTRIES).map(({ id, asked }) => ({ id, asked }));
    localStorage.setItem(STORE, JSON.stringify(stored));
  }

  #set(entry, job) {
    const before = entry.job;
    if (ENDED.has(before.state)) return;
    entry.job = job;
    if (job.preview) entry.preview = job.preview;
    this.#onChange(entry, before);
  }

  #update() {
    if (document.hidden) return;
    // The oldest jobs start first.
    const waiting = this.all.filter((entry) => !ENDED.has(entry.job.state)).reverse();
    waiting.forEach((entry, index) => {
      if (this.#streams.has(entry.id) || (index >= MAX_STREAMS && this.#streams.has("others"))) return;
      if (index < MAX_STREAMS) this.#run(entry.id, (signal) => this.#follow(entry, signal));
      else this.#run("others", (signal) => this.#poll(signal));
    });
  }

  #run(name, work) {
    const stream = new AbortController();
    this.#streams.set(name, stream);
    work(stream.signal)
      .catch((error) => {
        if (stream.signal.aborted) return undefined;
        this.#onError(error);
        return pause(POLL_MS, stream.signal).catch(() => {});
      })
      .finally(() => {
        if (this.#streams.get(name) === stream) this.#streams.delete(name);
        if (!stream.signal.aborted) setTimeout(() => this.#update(), 200);
      });
  }

  async #follow(entry, signal) {
    while (!ENDED.has(entry.job.state)) {
      try {
        await followEvents(`v1/jobs/${entry.id}/events`, (_, job) => this.#set(entry, job), signal);
      } catch (error) {
        if (signal.aborted || !(error instanceof ApiError)) throw error;
        if (error.status === 404) return this.#set(entry, { ...entry.job, state: "failed", error });
        this.#onError(error);
      }
      if (!ENDED.has(entry.job.state)) await pause(1000, signal);
    }
  }

  async #poll(signal) {
    const { data } = await fetchJson("v1/jobs?limit=100", { signal });
    const jobs = new Map(data.map((job) => [job.id, job]));
    for (const entry of this.all) {
      if (jobs.has(entry.id) && !this.#streams.has(entry.id)) this.#set(entry, jobs.get(entry.id));
    }
    await pause(POLL_MS, signal);
  }
}

async function fetchJob(id) {
  try {
    return await fetchJson(`v1/jobs/${id}`);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}
