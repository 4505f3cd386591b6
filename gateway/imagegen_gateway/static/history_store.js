// The history of this browser in IndexedDB, which all tabs share: entries, start images and favourites.

const DATABASE = "imagegen";
const CHANNEL = "imagegen-history";
/** Name of the history in `localStorage` up to version 2.0; its entries are moved into the database. */
const FORMER = "imagegen-history";
/** Maximum number of entries, and maximum bytes of all start images, masks and favourites. */
const LIMITS = { entries: 500, inputBytes: 200 * 2 ** 20 };

const UNDO_MS = 60 * 60 * 1000;
const MAX_DRAFT_AGE_MS = 30 * 24 * UNDO_MS;

/** Return the id of the file of one image of an entry. */
export const partOf = (id, index) => `${id}/${index}`;
const ownerOf = (id) => id.split("/")[0];

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const finished = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });

async function openDatabase() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("entries", { keyPath: "id" });
    request.result.createObjectStore("inputs", { keyPath: "id" });
  };
  return settled(request);
}

/** Entries `{ id, asked, created, job, removed, favourites, hasInputs }` and inputs `{ image, mask }` (blobs). */
export class HistoryStore {
  #database = openDatabase();
  #channel = new BroadcastChannel(CHANNEL);

  #limits;

  /** `onChange()` is called after changes by other tabs. */
  constructor(onChange, limits = LIMITS) {
    this.#limits = limits;
    this.#database.catch(() => {});
    this.#channel.onmessage = onChange;
  }

  /** Return all entries, newest first. */
  async entries() {
    await this.#moveFormer();
    const transaction = (await this.#database).transaction("entries");
    const stored = await settled(transaction.objectStore("entries").getAll());
    return stored.sort((one, other) => other.created - one.created);
  }

  /** Store entries; delete the oldest beyond the limit, those with favourites last. */
  async put(...entries) {
    const transaction = (await this.#database).transaction("entries", "readwrite");
    const store = transaction.objectStore("entries");
    for (const entry of entries) store.put(entry);
    const excess = (await settled(store.count())) - this.#limits.entries;
    if (excess > 0) {
      const all = await settled(store.getAll());
      const isMarked = ({ favourites }) => Number(favourites.length > 0);
      all.sort((one, other) => isMarked(one) - isMarked(other) || one.created - other.created);
      for (const { id } of all.slice(0, excess)) store.delete(id);
    }
    await finished(transaction);
    this.#channel.postMessage("changed");
  }

  /** Delete entries. Their inputs remain until `prune`, so that the deletion can be undone. */
  async delete(ids) {
    const transaction = (await this.#database).transaction("entries", "readwrite");
    for (const id of ids) transaction.objectStore("entries").delete(id);
    await finished(transaction);
    this.#channel.postMessage("changed");
  }

  /** Return the inputs of an entry or a draft, or null. */
  async inputs(id) {
    const transaction = (await this.#database).transaction("inputs", "readwrite");
    const store = transaction.objectStore("inputs");
    const found = await settled(store.get(id));
    if (!found) return null;
    store.put({ ...found, used: Date.now() });
    return found;
  }

  /** Store the inputs of an entry or a draft; delete the least recently used ones beyond the limit. */
  async putInputs(id, inputs) {
    const transaction = (await this.#database).transaction("inputs", "readwrite");
    const store = transaction.objectStore("inputs");
    store.put({ ...inputs, id, used: Date.now() });
    const all = (await settled(store.getAll())).sort((one, other) => other.used - one.used);
    let bytes = 0;
    for (const each of all) {
      bytes += each.image.size + (each.mask?.size ?? 0);
      if (bytes > this.#limits.inputBytes && each.id !== id) store.delete(each.id);
    }
    await finished(transaction);
  }

  /** Delete inputs. */
  async deleteInputs(id) {
    const transaction = (await this.#database).transaction("inputs", "readwrite");
    transaction.objectStore("inputs").delete(id);
    await finished(transaction);
  }

  /** Delete the files of deleted entries that can no longer be restored, and those of old drafts. */
  async prune(isDraft) {
    const transaction = (await this.#database).transaction(["entries", "inputs"], "readwrite");
    const known = new Set(await settled(transaction.objectStore("entries").getAllKeys()));
    const store = transaction.objectStore("inputs");
    for (const { id, used } of await settled(store.getAll())) {
      const age = Date.now() - used;
      if (!known.has(ownerOf(id)) && age > (isDraft(id) ? MAX_DRAFT_AGE_MS : UNDO_MS)) store.delete(id);
    }
    await finished(transaction);
  }

  async #moveFormer() {
    const text = localStorage.getItem(FORMER);
    if (text === null) return;
    const now = Date.now();
    const entries = JSON.parse(text).map(({ id, asked }, index) => newEntry(id, asked, now - index));
    await this.put(...entries);
    localStorage.removeItem(FORMER);
  }
}

/** Return a new entry. `created`: milliseconds since 1970. */
export function newEntry(id, asked, created, job = null, hasInputs = false) {
  return { id, asked, created, job, removed: [], favourites: [], hasInputs };
}
