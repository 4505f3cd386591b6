// The gallery: a tile for each image or job, and the filter by prompt and favourites.

import { fileOf } from "./api.js";
import { create, createSvg, duration, find, setText } from "./dom.js";
import { imagesOf, isExpired } from "./entries.js";

const STATES = { failed: "Failed", cancelled: "Cancelled" };
const STAR = "M12 3.2l2.7 5.6 6.1.8-4.5 4.2 1.1 6.1L12 17l-5.4 2.9 1.1-6.1L3.2 9.6l6.1-.8z";
const CROSS = "M6 6l12 12M18 6L6 18";

/**
 * The tiles of all entries. `actions`: `open(entry, index)`, `cancel(entry)`, `again(entry)`,
 * `remove(entry, index)` (without index: the whole entry), `favourite(entry, index, marked)`, and
 * `kept(entry, index)`, which returns the file of an image that this browser keeps, or null.
 */
export class Gallery {
  #tiles = new Map();
  #entries = [];
  #actions;

  constructor(actions) {
    this.#actions = actions;
  }

  /** Show these entries; `renew` are those whose tiles are created again. */
  show(entries, renew = entries) {
    const focused = document.activeElement;
    const place = [...find("tiles").children].findIndex((tile) => tile.contains(focused));
    this.#entries = entries;
    for (const { id } of renew) this.#tiles.delete(id);
    const tiles = entries.flatMap((entry) => this.#tiles.get(entry.id) ?? this.#createTiles(entry));
    const known = new Set(entries.map(({ id }) => id));
    for (const id of this.#tiles.keys()) if (!known.has(id)) this.#tiles.delete(id);
    find("tiles").replaceChildren(...tiles);
    this.filter();
    if (focused.isConnected) focused.focus();
    else if (place >= 0) ((tiles[place] ?? tiles.at(-1))?.querySelector("button") ?? find("prompt")).focus();
  }

  /** Show the current state of an entry. */
  update(entry, before) {
    const [tile] = this.#tiles.get(entry.id) ?? [];
    if (!tile) return;
    const running = (state) => state === "queued" || state === "running";
    if (running(before.state) && running(entry.job.state)) showProgress(tile, entry);
    else this.renew(entry);
  }

  /** Replace the tiles of an entry; the focus moves to the one at the same place, or to the next tile. */
  renew(entry) {
    const old = this.#tiles.get(entry.id) ?? [];
    const place = old.findIndex((tile) => tile.contains(document.activeElement));
    const next = old.at(-1)?.nextElementSibling;
    const tiles = this.#entries.includes(entry) ? this.#createTiles(entry) : [];
    if (!tiles.length) this.#tiles.delete(entry.id);
    old[0]?.before(...tiles);
    for (const tile of old) tile.remove();
    this.filter();
    if (place >= 0) ((tiles[place] ?? tiles.at(-1) ?? next)?.querySelector("button") ?? find("prompt")).focus();
  }

  /** Show only the tiles that match the search and the filter. */
  filter() {
    const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const onlyFavourites = find("only-favourites").getAttribute("aria-pressed") === "true";
    let shown = 0;
    for (const entry of this.#entries) {
      const prompt = entry.job.prompt.toLowerCase();
      const matches = words.every((word) => prompt.includes(word));
      for (const tile of this.#tiles.get(entry.id) ?? []) {
        tile.hidden = !matches || (onlyFavourites && !entry.favourites.includes(Number(tile.dataset.index)));
        shown += Number(!tile.hidden);
      }
    }
    const none = this.#tiles.size === 0;
    find("gallery-tools").hidden = none;
    find("empty").hidden = shown > 0;
    setText(find("empty"), none ? "Generated images appear here until they expire." : "No image matches.");
  }

  /** Return the shown images in order, as `{ entry, index, image }`. */
  images() {
    return this.#entries.flatMap((entry) => {
      const tiles = this.#tiles.get(entry.id) ?? [];
      const isShown = ({ index }) => tiles.some((tile) => Number(tile.dataset.index) === index && !tile.hidden);
      return imagesOf(entry).filter(isShown).map(({ index, image }) => ({ entry, index, image }));
    });
  }

  /** Focus the tile of an image. */
  focus(entry, index) {
    const tile = this.#tiles.get(entry.id)?.find(({ dataset }) => Number(dataset.index) === index);
    tile?.querySelector("button")?.focus();
  }

  #createTiles(entry) {
    const done = entry.job.state === "succeeded";
    const tiles = done ? imagesOf(entry).map((each) => this.#imageTile(entry, each)) : [this.#jobTile(entry)];
    this.#tiles.set(entry.id, tiles);
    return tiles;
  }

  #imageTile(entry, { index, image }) {
    const { prompt } = entry.job;
    const { width, height } = image;
    const onclick = () => this.#actions.open(entry, index);
    const properties = { type: "button", className: "frame", onclick, "aria-haspopup": "dialog" };
    const frame = create("button", properties);
    const element = create("img", { alt: prompt, loading: "lazy", width, height });
    frame.append(element);
    element.onerror = () => this.#showKept(entry, index, element);
    if (isExpired(entry)) this.#showKept(entry, index, element);
    else element.src = fileOf(image);
    const marked = entry.favourites.includes(index);
    const favourite = this.#icon("Favourite", STAR, prompt, () => this.#actions.favourite(entry, index, !marked));
    favourite.setAttribute("aria-pressed", String(marked));
    favourite.classList.add("star");
    const remove = this.#icon("Remove", CROSS, prompt, () => this.#actions.remove(entry, index));
    const tile = create("li", { className: "tile" }, frame, caption(prompt, `Seed ${image.seed}`, favourite, remove));
    tile.dataset.index = index;
    return tile;
  }

  /** Show the file of a favourite that this browser keeps, or that the image has expired. */
  async #showKept(entry, index, element) {
    element.onerror = null;
    const file = await this.#actions.kept(entry, index);
    if (file === null) {
      element.replaceWith(create("span", { className: "words" }, "Expired: the gateway has deleted this image."));
      return;
    }
    element.src = URL.createObjectURL(file);
    element.onload = () => URL.revokeObjectURL(element.src);
  }

  #jobTile(entry) {
    const { job } = entry;
    if (STATES[job.state]) {
      const failed = job.state === "failed";
      const words = create("div", { className: "words" }, failed ? job.error.message : STATES[job.state]);
      const frame = create("div", { className: failed ? "frame failed" : "frame" }, words);
      const again = this.#button("Use again", () => this.#actions.again(entry), entry);
      const remove = this.#button("Remove", () => this.#actions.remove(entry), entry);
      return create("li", { className: "tile" }, frame, caption(job.prompt, STATES[job.state], again, remove));
    }
    const bar = create("div", { className: "bar", role: "progressbar", "aria-label": `Generating ${job.prompt}` });
    bar.append(create("div", { className: "bar-done" }));
    const frame = create("div", { className: "frame" }, create("div", { className: "words" }), bar);
    const line = caption(job.prompt, "", this.#button("Cancel", () => this.#actions.cancel(entry), entry));
    const tile = create("li", { className: "tile" }, frame, line);
    showProgress(tile, entry);
    return tile;
  }

  #button(text, onclick, entry) {
    const label = `${text}: ${entry.job.prompt}`;
    return create("button", { type: "button", className: "quiet", onclick, "aria-label": label }, text);
  }

  #icon(text, path, prompt, onclick) {
    const label = `${text}: ${prompt}`;
    const properties = { type: "button", className: "quiet icon", onclick, "aria-label": label, title: text };
    return create("button", properties, createIcon(path));
  }
}

/** Return an icon of 24 by 24 units. */
function createIcon(path) {
  return createSvg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, createSvg("path", { d: path }));
}

function caption(prompt, text, ...buttons) {
  const line = create("p", { className: "caption-line" }, create("span", {}, text), ...buttons);
  const above = create("p", { className: "caption-prompt", title: prompt }, prompt);
  return create("div", { className: "caption" }, above, line);
}

function showProgress(tile, { job, preview }) {
  const done = job.state === "running" && job.steps ? job.step / job.steps : 0;
  const bar = tile.querySelector(".bar");
  bar.setAttribute("aria-valuenow", Math.round(done * 100));
  bar.firstElementChild.style.width = `${done * 100}%`;
  setText(tile.querySelector(".caption-line span"), describeState(job));
  const words = tile.querySelector(".words");
  if (preview === null || job.state === "queued") {
    tile.querySelector(".preview")?.remove();
    const [strong, below] = waiting(job);
    words.replaceChildren(create("strong", {}, strong), below);
    return;
  }
  words.replaceChildren();
  const element = tile.querySelector(".preview") ?? create("img", { className: "preview", alt: "" });
  if (element.src !== preview) element.src = preview;
  if (!element.isConnected) words.before(element);
}

/** Return a short description of the state of a job that has not ended. */
export function describeState(job) {
  if (job.state === "running") return job.steps ? `Step ${job.step} of ${job.steps}` : "Running";
  return job.place === null || job.place === undefined ? "Waiting" : `Position ${job.place + 1} in the queue`;
}

function waiting(job) {
  if (job.state === "running" && job.step) return [`${Math.round((100 * job.step) / job.steps)} %`, ""];
  if (job.state === "running") return ["", "Starting"];
  if (job.seconds_to_start === null || job.seconds_to_start === undefined) return ["", "Waiting"];
  return [`about ${duration(job.seconds_to_start)}`, "until it starts"];
}
