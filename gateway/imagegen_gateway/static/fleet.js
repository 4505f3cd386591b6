// The fleet: figures of the broker and a card for each GPU.

import { announce, create, createSvg, duration, find, setText } from "./dom.js";

/** Time for which the card of a GPU that has left is shown. */
const GONE_MS = 30_000;
const MAX_CELLS = 32;
const POINTS = 60;
const WIDTH = 112;
const HEIGHT = 32;

const cards = new Map();
const figures = new Map();

/** Show the state of the fleet. */
export function showFleet(fleet) {
  const lost = fleet.lost_for_seconds !== null;
  const rates = fleet.gpus.map((gpu) => gpu.images_per_second.at(-1) ?? 0);
  const total = rates.reduce((sum, rate) => sum + rate, 0);
  figure("queued", "Queued", lost ? "–" : String(fleet.queued_requests ?? 0));
  figure("wait", "Wait", lost ? "–" : wait(fleet.estimated_wait_seconds));
  figure("rate", "Images/s", lost ? "–" : total.toFixed(2));
  const gpus = `${fleet.gpus.length} ${fleet.gpus.length === 1 ? "GPU" : "GPUs"}`;
  setText(find("fleet-note"), lost ? "No data" : gpus);
  setText(find("summary"), lost ? "" : `${gpus}, ${total.toFixed(2)} images/s`);
  const highest = Math.max(0.001, ...fleet.gpus.flatMap((gpu) => gpu.images_per_second));
  for (const gpu of fleet.gpus) {
    if (!cards.has(gpu.worker)) cards.set(gpu.worker, newCard(gpu));
    showGpu(cards.get(gpu.worker), gpu, lost ? "stale" : gpu.state, highest);
  }
  if (!lost) markGone(new Set(fleet.gpus.map((gpu) => gpu.worker)));
}

/** Show that the state of the fleet is unknown. */
export function showFleetUnavailable() {
  for (const { state } of cards.values()) {
    state.className = "state";
    setText(state, "stale");
  }
  setText(find("summary"), "");
  setText(find("fleet-note"), "No data");
}

const count = (images) => `${images} ${images === 1 ? "image" : "images"}`;

function figure(name, label, value) {
  if (!figures.has(name)) {
    const shown = create("dd");
    find("figures").append(create("div", {}, create("dt", {}, label), shown));
    figures.set(name, shown);
  }
  setText(figures.get(name), value);
}

function wait(seconds) {
  if (seconds === null) return "–";
  return seconds < 1 ? "none" : duration(seconds);
}

function newCard(gpu) {
  const card = {
    state: create("span", { className: "state" }),
    where: create("p", { className: "gpu-where muted" }),
    rows: create("div", { className: "rows", role: "img" }),
    load: create("span"),
    rate: create("strong"),
    readings: create("div"),
    line: createSvg("path"),
    under: createSvg("path", { class: "under" }),
    goneSince: null,
  };
  const attributes = { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" };
  const spark = createSvg("svg", attributes, card.under, card.line);
  const head = create("div", { className: "gpu-head" }, create("h3", {}, gpu.worker), card.state);
  const rate = create("span", {}, card.rate, " images/s");
  const numbers = create("div", {}, create("div", {}, card.load), create("div", {}, rate), card.readings);
  const below = create("div", { className: "gpu-numbers" }, numbers, spark);
  card.element = create("li", { className: "gpu" }, head, card.where, card.rows, below);
  find("gpus").append(card.element);
  return card;
}

function showGpu(card, gpu, state, highest) {
  if (card.goneSince !== null) announce(`${gpu.worker} is back`);
  card.goneSince = null;
  card.element.classList.remove("gone");
  card.state.className = `state ${state}`;
  setText(card.state, state);
  setText(card.where, `${gpu.device}, GPU ${gpu.gpu_id} on ${gpu.host}, ${gpu.models.join(", ")}`);
  card.where.title = card.where.textContent;
  const waiting = Math.max(0, gpu.current_queue_depth - gpu.running);
  showRows(card.rows, gpu.running, waiting, Math.max(gpu.capacity, gpu.current_queue_depth));
  setText(card.load, `${count(gpu.running)} running, ${waiting} waiting`);
  setText(card.rate, (gpu.images_per_second.at(-1) ?? 0).toFixed(2));
  setText(card.readings, readings(gpu));
  showSpark(card, gpu.images_per_second, highest);
}

/** Return memory and temperature, if the worker reports them. */
function readings(gpu) {
  const texts = [];
  if (gpu.memory_used_bytes !== undefined) {
    const gibibytes = (bytes) => (bytes / 2 ** 30).toFixed(1);
    const total = gpu.memory_total_bytes === undefined ? "" : ` of ${gibibytes(gpu.memory_total_bytes)}`;
    texts.push(`${gibibytes(gpu.memory_used_bytes)}${total} GiB`);
  }
  if (gpu.temperature_celsius !== undefined) texts.push(`${Math.round(gpu.temperature_celsius)} °C`);
  return texts.join(", ");
}

function showRows(rows, running, waiting, capacity) {
  const cells = Math.min(capacity, MAX_CELLS);
  const scale = capacity > MAX_CELLS ? MAX_CELLS / capacity : 1;
  while (rows.children.length > cells) rows.lastChild.remove();
  while (rows.children.length < cells) rows.append(create("i"));
  [...rows.children].forEach((cell, index) => {
    cell.className = index < running * scale ? "running" : index < (running + waiting) * scale ? "waiting" : "";
  });
  rows.setAttribute("aria-label", `${running} running and ${waiting} waiting, of ${capacity} images`);
}

function showSpark(card, rates, highest) {
  const step = WIDTH / (POINTS - 1);
  const first = POINTS - rates.length;
  const points = rates.map((rate, index) => {
    const height = HEIGHT - 1 - (rate / highest) * (HEIGHT - 3);
    return `${((first + index) * step).toFixed(1)},${height.toFixed(1)}`;
  });
  const line = points.length ? `M${points.join("L")}` : "";
  card.line.setAttribute("d", line);
  card.under.setAttribute("d", line && `${line}L${WIDTH},${HEIGHT}L${(first * step).toFixed(1)},${HEIGHT}Z`);
}

function markGone(present) {
  const now = Date.now();
  for (const [name, card] of cards) {
    if (present.has(name)) continue;
    if (card.goneSince === null) {
      card.goneSince = now;
      card.element.classList.add("gone");
      card.state.className = "state gone";
      setText(card.state, "gone");
      setText(card.load, "not connected");
      setText(card.rate, "0.00");
      showRows(card.rows, 0, 0, card.rows.children.length);
      announce(`${name} is gone`);
    } else if (now - card.goneSince > GONE_MS) {
      card.element.remove();
      cards.delete(name);
    }
  }
}
