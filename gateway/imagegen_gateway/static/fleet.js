// The fleet: the broker's figures, and a card for each GPU.

import { announce, draw, duration, find, make, say } from "./dom.js";

const GONE_MS = 30_000;
const MOST_CELLS = 32;
const POINTS = 60;
const WIDTH = 112;
const HEIGHT = 32;

const cards = new Map();
const figures = new Map();

/** Show how the fleet stands. */
export function showFleet(fleet) {
  const lost = fleet.lost_for_seconds !== null;
  const rates = fleet.gpus.map((gpu) => gpu.images_per_second.at(-1) ?? 0);
  const total = rates.reduce((sum, rate) => sum + rate, 0);
  figure("queued", "Queued", lost ? "–" : String(fleet.queued_requests ?? 0));
  figure("wait", "Wait", lost ? "–" : wait(fleet.estimated_wait_seconds));
  figure("rate", "Images/s", lost ? "–" : total.toFixed(2));
  const count = fleet.gpus.length;
  say(find("fleet-note"), lost ? "No news" : `${count} ${count === 1 ? "GPU" : "GPUs"}`);
  say(find("summary"), lost ? "" : `${count} ${count === 1 ? "GPU" : "GPUs"}, ${total.toFixed(2)} images/s`);
  const most = Math.max(0.001, ...fleet.gpus.flatMap((gpu) => gpu.images_per_second));
  for (const gpu of fleet.gpus) {
    if (!cards.has(gpu.worker)) cards.set(gpu.worker, newCard(gpu));
    showGpu(cards.get(gpu.worker), gpu, lost ? "no news" : gpu.state, most);
  }
  if (!lost) leave(new Set(fleet.gpus.map((gpu) => gpu.worker)));
}

/** Show that nobody tells of the fleet. */
export function showNoFleet() {
  for (const { state } of cards.values()) {
    state.className = "state";
    say(state, "no news");
  }
  say(find("summary"), "");
  say(find("fleet-note"), "No news");
}

function figure(name, label, value) {
  if (!figures.has(name)) {
    const shown = make("dd");
    find("figures").append(make("div", {}, make("dt", {}, label), shown));
    figures.set(name, shown);
  }
  say(figures.get(name), value);
}

function wait(seconds) {
  if (seconds === null) return "–";
  return seconds < 1 ? "none" : duration(seconds);
}

function newCard(gpu) {
  const card = {
    state: make("span", { className: "state" }),
    where: make("p", { className: "gpu-where muted" }),
    rows: make("div", { className: "rows", role: "img" }),
    load: make("span"),
    rate: make("strong"),
    told: make("div"),
    line: draw("path"),
    under: draw("path", { class: "under" }),
    goneSince: null,
  };
  const look = { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" };
  const spark = draw("svg", look, card.under, card.line);
  const head = make("div", { className: "gpu-head" }, make("h3", {}, gpu.worker), card.state);
  const rate = make("span", {}, card.rate, " images/s");
  const numbers = make("div", {}, make("div", {}, card.load), make("div", {}, rate), card.told);
  const below = make("div", { className: "gpu-numbers" }, numbers, spark);
  card.element = make("li", { className: "gpu" }, head, card.where, card.rows, below);
  find("gpus").append(card.element);
  return card;
}

function showGpu(card, gpu, state, most) {
  if (card.goneSince !== null) announce(`${gpu.worker} is back`);
  card.goneSince = null;
  card.element.classList.remove("gone");
  card.state.className = `state ${state.replace(" ", "-")}`;
  say(card.state, state);
  say(card.where, `${gpu.device}, GPU ${gpu.gpu_id} of ${gpu.host}, ${gpu.models.join(", ")}`);
  card.where.title = card.where.textContent;
  const waiting = Math.max(0, gpu.current_queue_depth - gpu.running);
  showRows(card.rows, gpu.running, waiting, Math.max(gpu.capacity, gpu.current_queue_depth));
  say(card.load, `${gpu.running} running, ${waiting} waiting`);
  say(card.rate, (gpu.images_per_second.at(-1) ?? 0).toFixed(2));
  say(card.told, readings(gpu));
  showSpark(card, gpu.images_per_second, most);
}

/** Memory and temperature, where the worker tells them. */
function readings(gpu) {
  const told = [];
  if (gpu.memory_used_bytes !== undefined) {
    const gibibytes = (bytes) => (bytes / 2 ** 30).toFixed(1);
    const total = gpu.memory_total_bytes === undefined ? "" : ` of ${gibibytes(gpu.memory_total_bytes)}`;
    told.push(`${gibibytes(gpu.memory_used_bytes)}${total} GiB`);
  }
  if (gpu.temperature_celsius !== undefined) told.push(`${Math.round(gpu.temperature_celsius)} °C`);
  return told.join(", ");
}

function showRows(rows, running, waiting, capacity) {
  const cells = Math.min(capacity, MOST_CELLS);
  const scale = capacity > MOST_CELLS ? MOST_CELLS / capacity : 1;
  while (rows.children.length > cells) rows.lastChild.remove();
  while (rows.children.length < cells) rows.append(make("i"));
  [...rows.children].forEach((cell, index) => {
    cell.className = index < running * scale ? "running" : index < (running + waiting) * scale ? "waiting" : "";
  });
  rows.setAttribute("aria-label", `${running} running and ${waiting} waiting, of ${capacity} images`);
}

function showSpark(card, rates, most) {
  const step = WIDTH / (POINTS - 1);
  const first = POINTS - rates.length;
  const points = rates.map((rate, index) => {
    const height = HEIGHT - 1 - (rate / most) * (HEIGHT - 3);
    return `${((first + index) * step).toFixed(1)},${height.toFixed(1)}`;
  });
  const line = points.length ? `M${points.join("L")}` : "";
  card.line.setAttribute("d", line);
  card.under.setAttribute("d", line && `${line}L${WIDTH},${HEIGHT}L${(first * step).toFixed(1)},${HEIGHT}Z`);
}

function leave(there) {
  const now = Date.now();
  for (const [name, card] of cards) {
    if (there.has(name)) continue;
    if (card.goneSince === null) {
      card.goneSince = now;
      card.element.classList.add("gone");
      card.state.className = "state gone";
      say(card.state, "gone");
      say(card.load, "nothing is heard of it");
      say(card.rate, "0.00");
      showRows(card.rows, 0, 0, card.rows.children.length);
      announce(`${name} is gone`);
    } else if (now - card.goneSince > GONE_MS) {
      card.element.remove();
      cards.delete(name);
    }
  }
}
