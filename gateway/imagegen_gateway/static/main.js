// The page: wiring of its parts and events.

import { fetchJson, followEvents, key, pause } from "./api.js";
import { announce, find, setText } from "./dom.js";
import { Entries } from "./entries.js";
import { showFleet, showFleetUnavailable } from "./fleet.js";
import * as form from "./form.js";
import { Gallery, fileOf, showDetail, describeState } from "./gallery.js";
import { setModels, showDigest, showModel } from "./models.js";
import { setDeclared } from "./parameters.js";
import { parametersIn } from "./png.js";

const RETRY_MS = [500, 1000, 2000, 5000];
const BROKER_LOST = "The broker does not answer. Jobs are kept, and continue when it is back.";
const RECOVERY_MS = 4000;
const WARNING_MS = 8000;
/** On wide screens the options are always expanded. */
const WIDE = matchMedia("(min-width: 50rem)");

let shown = null;
let stream = null;
let models = "";
let bannerTimer = null;
/** Text to show when the current problem is over; null if there is no lasting problem. */
let recoveryText = null;

// ---- banner and key ---------------------------------------------------------------------------------------

function showBanner(text, className, milliseconds = null) {
  clearTimeout(bannerTimer);
  const banner = find("banner");
  banner.className = className;
  banner.hidden = false;
  setText(banner, text);
  if (milliseconds !== null) bannerTimer = setTimeout(() => (banner.hidden = true), milliseconds);
}

/** Show a warning until `clearWarning` replaces it with `recovery`; without `recovery`, for a few seconds. */
function warn(text, recovery = null) {
  if (recovery === null && recoveryText !== null) return;
  recoveryText = recovery;
  showBanner(text, "banner", recovery === null ? WARNING_MS : null);
}

function clearWarning() {
  if (recoveryText === null) return;
  showBanner(recoveryText, "banner good", RECOVERY_MS);
  recoveryText = null;
}

function openKeyDialog(reason) {
  setText(find("key-why"), reason);
  if (find("key-dialog").open) return;
  find("key").value = key.get();
  find("key-dialog").showModal();
}

/** Show an error of a background request. */
function reportError(error) {
  if (error.status === 401) {
    suspend();
    const required = "This gateway requires a key. It is stored in this tab only.";
    openKeyDialog(key.get() ? `The gateway rejects this key: ${error.message}.` : required);
  } else if (error.status === 0) warn(`${error.message} Trying again.`, "The gateway is back.");
  else warn(error.message);
}

// ---- images -----------------------------------------------------------------------------------------------

const gallery = new Gallery({
  open,
  cancel: (entry) => entries.cancel(entry).catch(reportError),
  again(entry) {
    form.setImage(entry.image ?? null);
    form.fill(entry.asked);
    find("prompt").focus();
  },
  remove(entry) {
    entries.remove([entry]);
    gallery.remove(entry);
  },
});

const entries = new Entries((entry, before) => {
  gallery.update(entry, before);
  const { job } = entry;
  if (job.state === before.state) return;
  const words = { succeeded: "finished", failed: `failed: ${job.error?.message}`, cancelled: "cancelled" };
  announce(`${job.prompt}: ${words[job.state] ?? describeState(job)}`);
}, reportError);

async function submit() {
  const request = form.readForm();
  if (request === null) return;
  find("generate").disabled = true;
  try {
    gallery.add(await entries.add(request.asked, request.image));
    announce(`${request.asked.prompt}: accepted`);
    find("generate").disabled = false;
  } catch (error) {
    find("generate").disabled = false;
    if (error.status === 401) reportError(error);
    else form.showError(error);
  }
}

async function bytesOf(image) {
  const response = await fetch(fileOf(image));
  if (!response.ok) throw new Error("This image has expired.");
  return response.blob();
}

/** Return the parameters of an image: those of the request and those in the PNG file. */
async function parametersOf(entry, image) {
  const embedded = image.format === "png" ? parametersIn(await (await bytesOf(image)).arrayBuffer()) : null;
  const size = `${image.width}x${image.height}`;
  return { ...entry.asked, ...embedded, size, seed: image.seed, output_format: image.format };
}

async function open(entry, image) {
  shown = { entry, image };
  try {
    showDetail(entry, image, await parametersOf(entry, image));
  } catch (error) {
    warn(error.message);
  }
}

async function useAsInput() {
  form.setImage(await form.toDataUrl(await bytesOf(shown.image)));
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
      await followEvents("fleet/events", (_, fleet) => {
        failures = 0;
        showFleet(fleet);
        if (fleet.lost_for_seconds === null) clearWarning();
        else warn(BROKER_LOST, "The broker is back.");
        const served = JSON.stringify([fleet.models, fleet.default_model, fleet.models_mark]);
        if (fleet.models && served !== models) loadModels(served);
      }, signal);
    } catch (error) {
      if (signal.aborted) return;
      showFleetUnavailable();
      reportError(error);
      if (error.status === 401 || error.status === 403) return;
    }
    await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)], signal);
  }
}

async function loadModels(served) {
  models = served;
  try {
    setModels((await fetchJson("v1/models")).data);
    showDigest();
  } catch (error) {
    models = "";
    reportError(error);
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
    setDeclared(await fetchJson("openapi.json"));
    showModel();
    await entries.load();
  } catch (error) {
    reportError(error);
    if (error.status === 0) setTimeout(start, RETRY_MS.at(-1));
    return;
  }
  gallery.show(entries.all);
  resume();
}

function addListeners() {
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
  WIDE.addEventListener("change", () => (find("options").open = WIDE.matches));
  find("image").addEventListener("change", async ({ target }) => {
    if (target.files.length) form.setImage(await form.toDataUrl(target.files[0]));
  });
  find("input-remove").addEventListener("click", () => {
    form.setImage(null);
    find("image").focus();
  });
  find("clear").addEventListener("click", () => {
    const ended = entries.all.filter(({ job }) => job.state !== "queued" && job.state !== "running");
    entries.remove(ended);
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
  find("use-as-input").addEventListener("click", () => useAsInput().catch((error) => warn(error.message)));
  find("detail-close").addEventListener("click", () => find("detail").close());
  find("detail").addEventListener("click", ({ target }) => target === find("detail") && find("detail").close());
  find("key-open").addEventListener("click", () => openKeyDialog("Stored in this tab only, until it is closed."));
  find("key-close").addEventListener("click", () => find("key-dialog").close());
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(find("key").value.trim());
    find("key-dialog").close();
    start();
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? suspend() : resume()));
}

find("options").open = WIDE.matches;
form.setImage(null);
setModels([]);
addListeners();
start();
