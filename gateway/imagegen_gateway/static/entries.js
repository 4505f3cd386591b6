// The entries of the history, and the states of their jobs.

import { ApiError, fetchImage, fetchJson, followEvents, pause, postJson } from "./api.js";
import { HistoryStore, newEntry, partOf } from "./history_store.js";

/** Maximum number of event streams, as browsers limit connections per host; other jobs are polled. */
const MAX_STREAMS = 3;
const POLL_MS = 2000;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);

/** Whether the job of an entry has ended. */
export const hasEnded = (entry) => ENDED.has(entry.job.state);

/** Return the images of an entry that were not removed, as `{ index, image }`. */
export function imagesOf(entry) {
  const images = entry.job.state === "succeeded" ? entry.job.images : [];
  return images.map((image, index) => ({ index, image })).filter(({ index }) => !entry.removed.includes(index));
}

/** Whether the gateway has deleted the images of an entry. */
export const isExpired = ({ job }) => job.expires_at !== null && job.expires_at * 1000 < Date.now();

/** All entries, newest first, as in the store, with the last `preview` of a running job. */
export class Entries {
  #streams = new Map();
  #actions;
  #store;
  #unresolved = [];

  /**
   * `actions`: `changed(entry, before)` with the previous job, `reloaded()` after changes by other tabs,
   * `failed(error)` after failed requests, `notStored(error)` if the browser does not store the history.
   */
  constructor(actions) {
    this.all = [];
    this.#actions = actions;
    this.#store = new HistoryStore(() => this.#reload().catch(actions.failed));
  }

  /** The store, for the start images of drafts. */
  get store() {
    return this.#store;
  }

  /** Read the entries from the store; those whose job is unknown appear after `refresh`. */
  async read() {
    const known = new Map(this.all.map((entry) => [entry.id, entry]));
    let stored;
    try {
      stored = await this.#store.entries();
    } catch (error) {
      this.#actions.notStored(error);
      return;
    }
    const present = new Set(this.all.map(({ id }) => id));
    const kept = stored.filter(({ id }) => !known.has(id) || present.has(id));
    const loaded = kept.map((entry) => Object.assign(known.get(entry.id) ?? { preview: null }, merge(entry, known)));
    const ids = new Set(stored.map(({ id }) => id));
    const added = this.all.filter(({ id }) => !known.has(id) && !ids.has(id));
    this.#unresolved = loaded.filter((entry) => entry.job === null || !(hasEnded(entry) || known.has(entry.id)));
    this.all = [...added, ...loaded.filter(({ job }) => job !== null)];
  }

  /** Get the jobs of entries that had not ended when they were read, and follow them. Throws `ApiError`. */
  async refresh() {
    if (this.#unresolved.length) await this.#fetchJobs(this.#unresolved);
    const found = this.#unresolved.filter((entry) => entry.job !== null && !this.all.includes(entry));
    this.#unresolved = [];
    this.all = [...this.all, ...found].sort((one, other) => other.created - one.created);
    this.#update();
  }

  /** Create a job; return its entry. `inputs` are `{ image, mask }` or null. Throws `ApiError`. */
  async add(asked, inputs, onProgress) {
    const body = { ...asked };
    if (inputs !== null) body.image = await toDataUrl(inputs.image);
    if (inputs?.mask) body.mask = await toDataUrl(inputs.mask);
    const job = await postJson("v1/jobs", body, onProgress);
    const entry = { ...newEntry(job.id, asked, Date.now(), job, inputs !== null), preview: null };
    this.all.unshift(entry);
    if (inputs !== null) await this.#attempt(this.#store.putInputs(entry.id, inputs));
    await this.#save(entry);
    this.#update();
    return entry;
  }

  /** Return the start image and the mask of an entry, or null. */
  async inputs(entry) {
    return entry.hasInputs ? this.#store.inputs(entry.id).catch(() => null) : null;
  }

  /** Cancel a job that has not ended. Throws `ApiError`. */
  async cancel(entry) {
    this.#set(entry, await fetchJson(`v1/jobs/${entry.id}`, { method: "DELETE" }));
  }

  /** Mark an image as favourite and keep its file in this browser, or undo both. */
  async setFavourite(entry, index, marked) {
    entry.favourites = entry.favourites.filter((each) => each !== index);
    if (marked) entry.favourites.push(index);
    await this.#save(entry);
    const id = partOf(entry.id, index);
    if (!marked) await this.#attempt(this.#store.deleteInputs(id));
    else if (!isExpired(entry)) {
      const image = await fetchImage(entry.job.images[index]).catch(() => null);
      if (image !== null) await this.#attempt(this.#store.putInputs(id, { image, mask: null }));
    }
  }

  /** Return the file of a favourite, or null. */
  async keptImage(entry, index) {
    const found = await this.#store.inputs(partOf(entry.id, index)).catch(() => null);
    return found?.image ?? null;
  }

  /** Remove an entry, or one of its images; return a function that undoes it. */
  async remove(entry, index = null) {
    return this.#replace([entry], (each) => (index === null ? null : { removed: [...each.removed, index] }));
  }

  /** Remove all ended entries except favourites; return a function that undoes it. */
  async clear() {
    return this.#replace(this.all.filter(hasEnded), (entry) => {
      if (!entry.favourites.length) return null;
      const others = imagesOf(entry).map(({ index }) => index).filter((index) => !entry.favourites.includes(index));
      return { removed: [...entry.removed, ...others] };
    });
  }

  /** Return the number of images and failed jobs that `clear` removes. */
  clearable() {
    const counts = this.all.filter(hasEnded).map((entry) => {
      if (entry.job.state !== "succeeded") return 1;
      return imagesOf(entry).filter(({ index }) => !entry.favourites.includes(index)).length;
    });
    return counts.reduce((sum, count) => sum + count, 0);
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

  async #reload() {
    await this.read();
    await this.refresh();
    this.#actions.reloaded();
  }

  /** Change entries: `change` returns the changed fields, or null to remove the entry. */
  async #replace(entries, change) {
    const before = entries.map((entry) => ({ entry, removed: entry.removed }));
    const gone = [];
    for (const entry of entries) {
      const fields = change(entry);
      if (fields !== null) Object.assign(entry, fields);
      if (fields === null || !imagesOf(entry).length) gone.push(entry);
    }
    this.all = this.all.filter((entry) => !gone.includes(entry));
    // Both begin at once: the page may be left before the first one ends.
    const deleted = this.#attempt(this.#store.delete(gone.map(({ id }) => id)));
    await Promise.all([deleted, this.#save(...entries.filter((entry) => !gone.includes(entry)))]);
    return async () => {
      for (const { entry, removed } of before) entry.removed = removed;
      this.all = [...this.all, ...gone].sort((one, other) => other.created - one.created);
      await this.#save(...entries);
    };
  }

  async #save(...entries) {
    const stored = entries.map(({ preview, ...entry }) => ({ ...entry, job: { ...entry.job, preview: null } }));
    await this.#attempt(this.#store.put(...stored));
  }

  async #attempt(writing) {
    try {
      await writing;
    } catch (error) {
      this.#actions.notStored(error);
    }
  }

  async #fetchJobs(entries) {
    const listed = (await fetchJson("v1/jobs?limit=100")).data;
    const known = new Map(listed.map((job) => [job.id, job]));
    const fetched = entries.map(async (entry) => {
      const job = known.get(entry.id) ?? (await fetchJob(entry.id));
      if (job !== null) entry.job = job;
      if (job !== null && ENDED.has(job.state)) await this.#save(entry);
      // Not stored, as another key may find it.
      else if (job === null && entry.job !== null) entry.job = lost(entry);
    });
    await Promise.all(fetched);
  }

  #set(entry, job) {
    const before = entry.job;
    if (ENDED.has(before.state)) return;
    entry.job = job;
    if (job.preview) entry.preview = job.preview;
    if (ENDED.has(job.state) && job.code !== "not_found") this.#save(entry);
    this.#actions.changed(entry, before);
  }

  #update() {
    if (document.hidden) return;
    // The oldest jobs start first.
    const waiting = this.all.filter((entry) => !hasEnded(entry)).reverse();
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
        this.#actions.failed(error);
        return pause(POLL_MS, stream.signal).catch(() => {});
      })
      .finally(() => {
        if (this.#streams.get(name) === stream) this.#streams.delete(name);
        if (!stream.signal.aborted) setTimeout(() => this.#update(), 200);
      });
  }

  async #follow(entry, signal) {
    while (!hasEnded(entry)) {
      try {
        await followEvents(`v1/jobs/${entry.id}/events`, (_, job) => this.#set(entry, job), signal);
      } catch (error) {
        if (signal.aborted || !(error instanceof ApiError)) throw error;
        if (error.status === 404) return this.#set(entry, lost(entry));
        this.#actions.failed(error);
      }
      if (!hasEnded(entry)) await pause(1000, signal);
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

/** Return a stored entry with the later of its stored and its known job. */
function merge(stored, known) {
  const job = known.get(stored.id)?.job ?? null;
  return job === null || (stored.job !== null && ENDED.has(stored.job.state)) ? stored : { ...stored, job };
}

const lost = (entry) => ({
  ...entry.job,
  state: "failed",
  code: "not_found",
  error: { message: "The gateway no longer has this job." },
});

async function fetchJob(id) {
  try {
    return await fetchJson(`v1/jobs/${id}`);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Return a blob as a `data:` URL. */
function toDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = Object.assign(new FileReader(), { onload: () => resolve(reader.result), onerror: reject });
    reader.readAsDataURL(blob);
  });
}
