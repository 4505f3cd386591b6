// The pictures: a tile each, while they are made and afterwards, and a closer look at one.

import { at } from "./api.js";
import { duration, find, make, say } from "./dom.js";
import { labels } from "./parameters.js";

const STATES = { failed: "Failed", cancelled: "Cancelled" };

/** Return where a picture is; the gateway may be known by another name than the one in its own URL. */
export const fileOf = (image) => at(`v1/files/${image.url.split("/").pop()}`).href;

/** The tiles of all entries; `act` has `open(entry, image)`, `cancel(entry)`, `again(entry)`, `forget(entry)`. */
export class Gallery {
  #tiles = new Map();
  #act;

  constructor(act) {
    this.#act = act;
  }

  /** Show all entries anew. */
  show(entries) {
    this.#tiles.clear();
    find("tiles").replaceChildren();
    for (const entry of entries) find("tiles").append(...this.#make(entry));
    this.#note();
  }

  /** Show a new entry first. */
  add(entry) {
    find("tiles").prepend(...this.#make(entry));
    this.#note();
  }

  /** Show how an entry stands now. */
  update(entry, before) {
    const [tile] = this.#tiles.get(entry.id) ?? [];
    if (!tile) return;
    const running = (state) => state === "queued" || state === "running";
    if (running(before.state) && running(entry.job.state)) {
      showProgress(tile, entry);
      return;
    }
    const focused = tile.contains(document.activeElement);
    const made = this.#make(entry);
    tile.replaceWith(...made);
    if (focused) made[0].querySelector("button")?.focus();
    this.#note();
  }

  /** Take an entry's tiles away. */
  remove(entry) {
    const tiles = this.#tiles.get(entry.id) ?? [];
    const next = tiles.at(-1)?.nextElementSibling?.querySelector("button");
    const focused = tiles.some((tile) => tile.contains(document.activeElement));
    for (const tile of tiles) tile.remove();
    this.#tiles.delete(entry.id);
    if (focused) (next ?? find("prompt")).focus();
    this.#note();
  }

  #note() {
    find("empty").hidden = this.#tiles.size > 0;
    find("clear").hidden = this.#tiles.size === 0;
  }

  #make(entry) {
    const { job } = entry;
    const done = job.state === "succeeded";
    const made = done ? job.images.map((image) => this.#picture(entry, image)) : [this.#other(entry)];
    this.#tiles.set(entry.id, made);
    return made;
  }

  #picture(entry, image) {
    const { prompt } = entry.job;
    const { width, height } = image;
    const picture = make("img", { src: fileOf(image), alt: prompt, loading: "lazy", width, height });
    const onclick = () => this.#act.open(entry, image);
    const look = { type: "button", className: "frame", onclick, "aria-haspopup": "dialog" };
    const frame = make("button", look, picture);
    return make("li", { className: "tile" }, frame, caption(prompt, `Seed ${image.seed}`));
  }

  #other(entry) {
    const { job } = entry;
    if (STATES[job.state]) {
      const failed = job.state === "failed";
      const words = make("div", { className: "words" }, failed ? job.error.message : STATES[job.state]);
      const frame = make("div", { className: failed ? "frame failed" : "frame" }, words);
      const again = this.#button("Use again", "again", entry);
      const line = caption(job.prompt, STATES[job.state], again, this.#button("Remove", "forget", entry));
      return make("li", { className: "tile" }, frame, line);
    }
    const bar = make("div", { className: "bar", role: "progressbar", "aria-label": `Making ${job.prompt}` });
    bar.append(make("div", { className: "bar-done" }));
    const frame = make("div", { className: "frame" }, make("div", { className: "words" }), bar);
    const line = caption(job.prompt, "", this.#button("Cancel", "cancel", entry));
    const tile = make("li", { className: "tile making" }, frame, line);
    showProgress(tile, entry);
    return tile;
  }

  #button(text, act, entry) {
    const onclick = () => this.#act[act](entry);
    const label = `${text}: ${entry.job.prompt}`;
    return make("button", { type: "button", className: "quiet", onclick, "aria-label": label }, text);
  }
}

function caption(prompt, text, ...buttons) {
  const line = make("p", { className: "caption-line" }, make("span", {}, text), ...buttons);
  const above = make("p", { className: "caption-prompt", title: prompt }, prompt);
  return make("div", { className: "caption" }, above, line);
}

function showProgress(tile, { job, preview }) {
  const done = job.state === "running" && job.steps ? job.step / job.steps : 0;
  const bar = tile.querySelector(".bar");
  bar.setAttribute("aria-valuenow", Math.round(done * 100));
  bar.firstElementChild.style.width = `${done * 100}%`;
  say(tile.querySelector(".caption-line span"), standing(job));
  const words = tile.querySelector(".words");
  if (preview === null || job.state === "queued") {
    tile.querySelector(".preview")?.remove();
    const [strong, below] = waiting(job);
    words.replaceChildren(make("strong", {}, strong), below);
    return;
  }
  words.replaceChildren();
  const picture = tile.querySelector(".preview") ?? make("img", { className: "preview", alt: "" });
  if (picture.src !== preview) picture.src = preview;
  if (!picture.isConnected) words.before(picture);
}

/** Return how a job that has not ended stands, in a few words. */
export function standing(job) {
  if (job.state === "running") return job.steps ? `Step ${job.step} of ${job.steps}` : "Running";
  return job.place === null || job.place === undefined ? "Waiting" : `Place ${job.place + 1} in the queue`;
}

function waiting(job) {
  if (job.state === "running" && job.step) return [`${Math.round((100 * job.step) / job.steps)} %`, ""];
  if (job.state === "running") return ["", "Starting"];
  if (job.seconds_to_start === null || job.seconds_to_start === undefined) return ["", "Waiting"];
  return [`about ${duration(job.seconds_to_start)}`, "until it starts"];
}

/** Show a picture and what it was made with. */
export function showDetail(entry, image, parameters) {
  const rows = Object.entries(labels())
    .filter(([name]) => parameters[name] !== undefined && parameters[name] !== null)
    .map(([name, label]) => [make("dt", {}, label), make("dd", {}, String(parameters[name]))]);
  find("detail-parameters").replaceChildren(...rows.flat());
  say(find("detail-prompt"), entry.job.prompt);
  Object.assign(find("detail-image"), { src: fileOf(image), alt: entry.job.prompt });
  const name = `${nameOf(entry.job.prompt)}-${image.seed}.${image.format}`;
  Object.assign(find("download"), { href: fileOf(image), download: name });
  if (!find("detail").open) find("detail").showModal();
}

function nameOf(prompt) {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  return words.slice(0, 40).replace(/^-|-$/g, "") || "picture";
}
