// The gallery: a tile for each image or job, and the dialog with the details of an image.

import { urlOf } from "./api.js";
import { create, duration, find, setText } from "./dom.js";
import { labels } from "./parameters.js";

const STATES = { failed: "Failed", cancelled: "Cancelled" };

/** Return the URL of an image relative to the page, as the host of `image.url` may differ. */
export const fileOf = (image) => urlOf(`v1/files/${image.url.split("/").pop()}`).href;

/** The tiles of all entries. `actions`: `open(entry, image)`, `cancel(entry)`, `again(entry)`, `remove(entry)`. */
export class Gallery {
  #tiles = new Map();
  #actions;

  constructor(actions) {
    this.#actions = actions;
  }

  /** Replace all tiles. */
  show(entries) {
    this.#tiles.clear();
    find("tiles").replaceChildren();
    for (const entry of entries) find("tiles").append(...this.#createTiles(entry));
    this.#showEmpty();
  }

  /** Show a new entry at the top. */
  add(entry) {
    find("tiles").prepend(...this.#createTiles(entry));
    this.#showEmpty();
  }

  /** Show the current state of an entry. */
  update(entry, before) {
    const [tile] = this.#tiles.get(entry.id) ?? [];
    if (!tile) return;
    const running = (state) => state === "queued" || state === "running";
    if (running(before.state) && running(entry.job.state)) {
      showProgress(tile, entry);
      return;
    }
    const focused = tile.contains(document.activeElement);
    const tiles = this.#createTiles(entry);
    tile.replaceWith(...tiles);
    if (focused) tiles[0].querySelector("button")?.focus();
    this.#showEmpty();
  }

  /** Remove the tiles of an entry. */
  remove(entry) {
    const tiles = this.#tiles.get(entry.id) ?? [];
    const next = tiles.at(-1)?.nextElementSibling?.querySelector("button");
    const focused = tiles.some((tile) => tile.contains(document.activeElement));
    for (const tile of tiles) tile.remove();
    this.#tiles.delete(entry.id);
    if (focused) (next ?? find("prompt")).focus();
    this.#showEmpty();
  }

  #showEmpty() {
    find("empty").hidden = this.#tiles.size > 0;
    find("clear").hidden = this.#tiles.size === 0;
  }

  #createTiles(entry) {
    const { job } = entry;
    const done = job.state === "succeeded";
    const tiles = done ? job.images.map((image) => this.#imageTile(entry, image)) : [this.#jobTile(entry)];
    this.#tiles.set(entry.id, tiles);
    return tiles;
  }

  #imageTile(entry, image) {
    const { prompt } = entry.job;
    const { width, height } = image;
    const element = create("img", { src: fileOf(image), alt: prompt, loading: "lazy", width, height });
    const onclick = () => this.#actions.open(entry, image);
    const properties = { type: "button", className: "frame", onclick, "aria-haspopup": "dialog" };
    const frame = create("button", properties, element);
    return create("li", { className: "tile" }, frame, caption(prompt, `Seed ${image.seed}`));
  }

  #jobTile(entry) {
    const { job } = entry;
    if (STATES[job.state]) {
      const failed = job.state === "failed";
      const words = create("div", { className: "words" }, failed ? job.error.message : STATES[job.state]);
      const frame = create("div", { className: failed ? "frame failed" : "frame" }, words);
      const again = this.#button("Use again", "again", entry);
      const line = caption(job.prompt, STATES[job.state], again, this.#button("Remove", "remove", entry));
      return create("li", { className: "tile" }, frame, line);
    }
    const bar = create("div", { className: "bar", role: "progressbar", "aria-label": `Generating ${job.prompt}` });
    bar.append(create("div", { className: "bar-done" }));
    const frame = create("div", { className: "frame" }, create("div", { className: "words" }), bar);
    const line = caption(job.prompt, "", this.#button("Cancel", "cancel", entry));
    const tile = create("li", { className: "tile" }, frame, line);
    showProgress(tile, entry);
    return tile;
  }

  #button(text, action, entry) {
    const onclick = () => this.#actions[action](entry);
    const label = `${text}: ${entry.job.prompt}`;
    return create("button", { type: "button", className: "quiet", onclick, "aria-label": label }, text);
  }
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

/** Show an image with its parameters. */
export function showDetail(entry, image, parameters) {
  const rows = Object.entries(labels())
    .filter(([name]) => parameters[name] !== undefined && parameters[name] !== null)
    .map(([name, label]) => [create("dt", {}, label), create("dd", {}, String(parameters[name]))]);
  find("detail-parameters").replaceChildren(...rows.flat());
  setText(find("detail-prompt"), entry.job.prompt);
  Object.assign(find("detail-image"), { src: fileOf(image), alt: entry.job.prompt });
  const name = `${nameOf(entry.job.prompt)}-${image.seed}.${image.format}`;
  Object.assign(find("download"), { href: fileOf(image), download: name });
  if (!find("detail").open) find("detail").showModal();
}

function nameOf(prompt) {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  return words.slice(0, 40).replace(/^-|-$/g, "") || "image";
}
