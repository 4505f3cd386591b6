// The page: what happens when.

import { ask, follow, key, pause } from "./api.js";
import { announce, find, say } from "./dom.js";
import { Entries } from "./entries.js";
import { showFleet, showNoFleet } from "./fleet.js";
import * as form from "./form.js";
import { Gallery, fileOf, showDetail, standing } from "./gallery.js";
import { setModels, showDigest, showModel } from "./models.js";
import { setDeclared } from "./parameters.js";
import { parametersIn } from "./png.js";

const RETRY_MS = [500, 1000, 2000, 5000];
const BROKER_LOST = "The broker does not answer. What was asked for is kept, and goes on when it is back.";
const ALL_WELL_MS = 4000;
const NOTE_MS = 8000;
/** Where the options have room beside the pictures, they are not folded away. */
const ROOMY = matchMedia("(min-width: 50rem)");

let shown = null;
let stream = null;
let models = "";
let bannerTimer = null;
/** What the banner says when the trouble that it tells of is over; null: it is no lasting one. */
let whenOver = null;

// ---- banner and key ---------------------------------------------------------------------------------------

function showBanner(text, look, milliseconds = null) {
  clearTimeout(bannerTimer);
  const banner = find("banner");
  banner.className = look;
  banner.hidden = false;
  say(banner, text);
  if (milliseconds !== null) bannerTimer = setTimeout(() => (banner.hidden = true), milliseconds);
}

/** Tell of a trouble until `allWell`, which says `over` then; without it, for a while. */
function warn(text, over = null) {
  if (over === null && whenOver !== null) return;
  whenOver = over;
  showBanner(text, "banner", over === null ? NOTE_MS : null);
}

function allWell() {
  if (whenOver === null) return;
  showBanner(whenOver, "banner good", ALL_WELL_MS);
  whenOver = null;
}

function askForKey(why) {
  say(find("key-why"), why);
  if (find("key-dialog").open) return;
  find("key").value = key.get();
  find("key-dialog").showModal();
}

/** Say what an error means that nobody waits for. */
function tell(error) {
  if (error.status === 401) {
    suspend();
    const needed = "This gateway needs a key. It is kept in this tab only.";
    askForKey(key.get() ? `The gateway does not take this key: ${error.message}.` : needed);
  } else if (error.status === 0) warn(`${error.message} Trying again.`, "The gateway is back.");
  else warn(error.message);
}

// ---- pictures ---------------------------------------------------------------------------------------------

const gallery = new Gallery({
  open,
  cancel: (entry) => entries.cancel(entry).catch(tell),
  again(entry) {
    form.setImage(entry.image ?? null);
    form.fill(entry.asked);
    find("prompt").focus();
  },
  forget(entry) {
    entries.forget([entry]);
    gallery.remove(entry);
  },
});

const entries = new Entries((entry, before) => {
  gallery.update(entry, before);
  const { job } = entry;
  if (job.state === before.state) return;
  const words = { succeeded: "is done", failed: `failed: ${job.error?.message}`, cancelled: "is cancelled" };
  announce(`${job.prompt}: ${words[job.state] ?? standing(job)}`);
}, tell);

async function submit() {
  const read = form.readForm();
  if (read === null) return;
  find("generate").disabled = true;
  try {
    gallery.add(await entries.add(read.asked, read.image));
    announce(`${read.asked.prompt}: accepted`);
    find("generate").disabled = false;
  } catch (error) {
    find("generate").disabled = false;
    if (error.status === 401) tell(error);
    else form.showError(error);
  }
}

async function bytesOf(image) {
  const response = await fetch(fileOf(image));
  if (!response.ok) throw new Error("the gateway has forgotten this picture");
  return response.blob();
}

/** Return what a picture was made with: what was asked, and what the picture itself tells. */
async function parametersOf(entry, image) {
  const told = image.format === "png" ? parametersIn(await (await bytesOf(image)).arrayBuffer()) : null;
  const size = `${image.width}x${image.height}`;
  return { ...entry.asked, ...told, size, seed: image.seed, output_format: image.format };
}

async function open(entry, image) {
  shown = { entry, image };
  try {
    showDetail(entry, image, await parametersOf(entry, image));
  } catch (error) {
    warn(error.message);
  }
}

async function startFrom() {
  form.setImage(await form.asUrl(await bytesOf(shown.image)));
  find("detail").close();
  find("prompt").focus();
}

function useAgain(seed) {
  form.setImage(shown.entry.image ?? null);
  form.fill({ ...shown.entry.asked, n: seed === null ? shown.entry.asked.n : 1, seed: seed ?? "" });
  find("detail").close();
}

// ---- the fleet --------------------------------------------------------------------------------------------

async function watchFleet(signal) {
  for (let failures = 0; ; failures += 1) {
    try {
      await follow("fleet/events", (_, fleet) => {
        failures = 0;
        showFleet(fleet);
        if (fleet.lost_for_seconds === null) allWell();
        else warn(BROKER_LOST, "The broker is back.");
        const served = JSON.stringify([fleet.models, fleet.default_model, fleet.models_mark]);
        if (fleet.models && served !== models) loadModels(served);
      }, signal);
    } catch (error) {
      if (signal.aborted) return;
      showNoFleet();
      tell(error);
      if (error.status === 401 || error.status === 403) return;
    }
    await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)], signal);
  }
}

async function loadModels(served) {
  models = served;
  try {
    setModels((await ask("v1/models")).data);
    showDigest();
  } catch (error) {
    models = "";
    tell(error);
  }
}

// ---- the page ---------------------------------------------------------------------------------------------

function suspend() {
  stream?.abort();
  stream = null;
  entries.suspend();
}

function resume() {
  if (document.hidden || stream !== null) return;
  stream = new AbortController();
  watchFleet(stream.signal).catch(() => {});
  entries.resume();
}

async function start() {
  suspend();
  models = "";
  form.clearProblem();
  try {
    setDeclared(await ask("openapi.json"));
    showModel();
    await entries.load();
  } catch (error) {
    tell(error);
    if (error.status === 0) setTimeout(start, RETRY_MS.at(-1));
    return;
  }
  gallery.show(entries.all);
  resume();
}

function listen() {
  find("compose").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("compose").requestSubmit();
  });
  find("model").addEventListener("change", showModel);
  find("compose").addEventListener("input", showDigest);
  find("compose").addEventListener("change", showDigest);
  ROOMY.addEventListener("change", () => (find("options").open = ROOMY.matches));
  find("image").addEventListener("change", async ({ target }) => {
    if (target.files.length) form.setImage(await form.asUrl(target.files[0]));
  });
  find("start-remove").addEventListener("click", () => {
    form.setImage(null);
    find("image").focus();
  });
  find("clear").addEventListener("click", () => {
    const ended = entries.all.filter(({ job }) => job.state !== "queued" && job.state !== "running");
    entries.forget(ended);
    gallery.show(entries.all);
    find("prompt").focus();
  });
  find("use-again").addEventListener("click", () => {
    useAgain(shown.image.seed);
    find("prompt").focus();
  });
  find("vary").addEventListener("click", () => {
    useAgain(null);
    submit();
  });
  find("start-from").addEventListener("click", () => startFrom().catch((error) => warn(error.message)));
  find("detail-close").addEventListener("click", () => find("detail").close());
  find("detail").addEventListener("click", ({ target }) => target === find("detail") && find("detail").close());
  find("key-open").addEventListener("click", () => askForKey("Kept in this tab only, until it is closed."));
  find("key-close").addEventListener("click", () => find("key-dialog").close());
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(find("key").value.trim());
    find("key-dialog").close();
    start();
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? suspend() : resume()));
}

find("options").open = ROOMY.matches;
form.setImage(null);
setModels([]);
listen();
start();
