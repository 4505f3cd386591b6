// The page: wiring of its parts and events.

import { fetchJson, key } from "./api.js";
import { swapSides, useAspect } from "./aspect.js";
import { announce, find } from "./dom.js";
import { isDraft, readDraft, restoreStartImage, writeDraft, writeStartImage } from "./draft.js";
import { Entries } from "./entries.js";
import { FleetWatch } from "./fleet_watch.js";
import * as form from "./form.js";
import { Gallery, describeState } from "./gallery.js";
import { addImageSources } from "./image_sources.js";
import { addKeyDialog, openKeyDialog } from "./key_dialog.js";
import { addMaskEditor, openMaskEditor } from "./mask_editor.js";
import { setModels } from "./models.js";
import { setDeclared } from "./parameters.js";
import { hasStartImage, moveCrop, readInputs, removeMask } from "./start_image.js";
import { removeStartImage, setStartImage, whenChanged } from "./start_image.js";
import { hideNotice, notify, setCondition } from "./status.js";
import { Viewer } from "./viewer.js";

const RETRY_MS = 5000;
const OFFLINE = "Offline, retrying. The gateway does not answer.";
/** On wide screens the options are always expanded. */
const WIDE = matchMedia("(min-width: 50rem)");

let stream = null;
/** Whether the restored draft is still to be applied to the parameters of the model. */
let isRestoring = false;
let isRestored = false;

/** Show an error of a background request. */
function reportError(error) {
  if (error.status === 401) {
    suspend();
    const required = "This gateway requires a key. It is stored in this tab only.";
    openKeyDialog(key.get() ? `The gateway rejects this key: ${error.message}.` : required);
  } else if (error.status === 0) setCondition("gateway", OFFLINE, "The gateway is back.");
  else notify(error.message);
}

// ---- images -----------------------------------------------------------------------------------------------

const gallery = new Gallery({
  open: (entry, index) => viewer.open(entry, index),
  cancel: (entry) => entries.cancel(entry).catch(reportError),
  again: (entry) => useAgain(entry, entry.asked.seed ?? null),
  favourite: (entry, index, marked) => setFavourite(entry, index, marked),
  kept: (entry, index) => entries.keptImage(entry, index),
  remove,
});

const entries = new Entries({
  changed(entry, before) {
    gallery.update(entry, before);
    const { job } = entry;
    if (job.state === before.state) return;
    const words = { succeeded: "finished", failed: `failed: ${job.error?.message}`, cancelled: "cancelled" };
    announce(`${job.prompt}: ${words[job.state] ?? describeState(job)}`);
  },
  reloaded: () => gallery.show(entries.all),
  failed: reportError,
  notStored: () => notify("This browser does not store the history: it is lost when the page is closed."),
});

const viewer = new Viewer(
  {
    images: () => gallery.images(),
    inputs: (entry) => entries.inputs(entry),
    kept: (entry, index) => entries.keptImage(entry, index),
  },
  ({ entry, index }) => gallery.focus(entry, index),
);

async function submit() {
  const asked = form.readForm();
  if (asked === null) return;
  form.showSending(0);
  try {
    const inputs = await readInputs();
    if (inputs !== null) asked.size = `${inputs.size.width}x${inputs.size.height}`;
    await entries.add(asked, inputs && { image: inputs.image, mask: inputs.mask }, form.showSending);
    gallery.show(entries.all, []);
    announce(`${asked.prompt}: accepted`);
    form.showSending(null);
  } catch (error) {
    form.showSending(null);
    if (error.status === 401) reportError(error);
    else form.showError(error);
  }
}

/** Fill in the form with the parameters and the inputs of an entry. */
async function useAgain(entry, seed) {
  const inputs = await entries.inputs(entry);
  if (inputs === null) removeStartImage();
  else await setStartImage(inputs.image, inputs.mask);
  form.fill({ ...entry.asked, n: seed === null ? entry.asked.n : 1, seed: seed ?? "" });
  saveDraft();
  find("prompt").focus();
  const lost = entry.hasInputs && inputs === null;
  if (lost) form.showProblem("The start image of this request is no longer stored. Choose it again.");
  return !lost;
}

async function useAsStart() {
  const file = viewer.file();
  viewer.close();
  try {
    await setStartImage(await file);
    find("prompt").focus();
  } catch (error) {
    notify(error.message);
  }
}

async function setFavourite(entry, index, marked) {
  const saving = entries.setFavourite(entry, index, marked);
  gallery.renew(entry);
  if (find("viewer").open) viewer.showFavourite();
  await saving;
}

async function remove(entry, index) {
  const undo = await entries.remove(entry, index);
  if (entries.all.includes(entry)) gallery.renew(entry);
  else gallery.show(entries.all, []);
  notify("Removed from the history.", () => undone(undo));
}

async function undone(undo) {
  await undo();
  gallery.show(entries.all);
}

async function clearHistory() {
  find("clear-dialog").close();
  const undo = await entries.clear();
  gallery.show(entries.all);
  notify("History cleared.", () => undone(undo));
  find("notice-undo").focus();
}

function lastSeed() {
  const newest = entries.all.find(({ job }) => job.state !== "failed");
  return newest ? newest.job.seed : null;
}

// ---- the page ---------------------------------------------------------------------------------------------

const fleet = new FleetWatch({
  answered() {
    setCondition("gateway", null);
    form.gatewayAnswers();
  },
  models(listed) {
    setModels(listed);
    if (isRestoring && listed.length) form.fill(readDraft() ?? {});
    isRestoring &&= !listed.length;
    form.adapt();
  },
  failed: reportError,
});

const saveDraft = () => writeDraft(form.readValues());

function suspend() {
  stream?.abort();
  stream = null;
  entries.suspend();
}

function resume() {
  if (document.hidden || stream !== null) return;
  stream = new AbortController();
  fleet.follow(stream.signal).catch(() => {});
  entries.resume();
}

async function start() {
  suspend();
  fleet.reset();
  form.clearProblem();
  await entries.read();
  gallery.show(entries.all);
  try {
    setDeclared(await fetchJson("openapi.json"));
    await restoreDraft();
    await entries.refresh();
  } catch (error) {
    reportError(error);
    if (error.status === 0) setTimeout(start, RETRY_MS);
    return;
  }
  gallery.show(entries.all, []);
  resume();
}

/** Restore the draft once, when the fields exist. */
async function restoreDraft() {
  if (isRestored) return;
  isRestored = true;
  const draft = readDraft();
  isRestoring = draft !== null && !find("prompt").value;
  if (isRestoring) form.fill(draft);
  else form.adapt();
  if (!hasStartImage()) await restoreStartImage(entries.store);
  entries.store.prune(isDraft).catch(() => {});
}

function addFormListeners() {
  find("compose").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("compose").requestSubmit();
  });
  find("model").addEventListener("change", form.adapt);
  for (const name of ["input", "change"]) {
    find("compose").addEventListener(name, ({ target }) => {
      isRestoring = false;
      form.onEdit();
      if (target === find("aspect")) useAspect();
      form.showSizes();
      saveDraft();
    });
  }
  const changeSize = (change) => () => {
    change();
    form.showSizes();
    saveDraft();
  };
  find("swap").addEventListener("click", changeSize(swapSides));
  find("seed-lock").addEventListener("click", changeSize(() => form.toggleSeed(lastSeed())));
  WIDE.addEventListener("change", () => (find("options").open = WIDE.matches));
  for (const details of [find("options"), find("more")]) {
    details.addEventListener("toggle", () => details.open && details.scrollIntoView({ block: "nearest" }));
  }
}

function addStartListeners() {
  addImageSources((error) => form.showProblem(error.message));
  whenChanged(() => {
    form.showSizes();
    writeStartImage(entries.store);
  });
  find("start-position").addEventListener("input", ({ target }) => moveCrop(Number(target.value)));
  find("start-remove").addEventListener("click", () => {
    removeStartImage();
    find("image").focus();
  });
  find("mask-open").addEventListener("click", openMaskEditor);
  find("mask-remove").addEventListener("click", () => {
    removeMask();
    find("mask-open").focus();
  });
  addMaskEditor();
}

function addHistoryListeners() {
  find("search").addEventListener("input", () => gallery.filter());
  find("only-favourites").addEventListener("click", ({ currentTarget: button }) => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    gallery.filter();
  });
  find("clear").addEventListener("click", () => {
    const count = entries.clearable();
    const text = `${count} ${count === 1 ? "image" : "images"} will be removed. Favourites and running jobs stay.`;
    find("clear-text").textContent = text;
    find("clear-dialog").showModal();
  });
  find("clear-yes").addEventListener("click", clearHistory);
  find("clear-no").addEventListener("click", () => find("clear-dialog").close());
  find("notice-close").addEventListener("click", hideNotice);
}

function addViewerListeners() {
  find("use-again").addEventListener("click", () => {
    const { entry, image } = viewer.shown;
    viewer.close();
    useAgain(entry, image.seed);
  });
  find("vary").addEventListener("click", async () => {
    const { entry } = viewer.shown;
    viewer.close();
    if (await useAgain(entry, null)) submit();
  });
  find("viewer-start").addEventListener("click", useAsStart);
  find("viewer-favourite").addEventListener("click", () => {
    const { entry, index } = viewer.shown;
    setFavourite(entry, index, !entry.favourites.includes(index));
  });
  find("viewer-remove").addEventListener("click", () => {
    const { entry, index } = viewer.shown;
    viewer.close();
    remove(entry, index);
  });
}

/** Let a form that is higher than the window scroll with the page until its lower edge is visible. */
function keepComposeInView() {
  const compose = document.querySelector(".compose");
  const place = () => {
    const top = Math.min(0, innerHeight - compose.offsetHeight - 80);
    compose.style.setProperty("--above", `${top}px`);
  };
  new ResizeObserver(place).observe(compose);
  addEventListener("resize", place);
}

find("options").open = WIDE.matches;
setModels([]);
addFormListeners();
addStartListeners();
addHistoryListeners();
addViewerListeners();
addKeyDialog(start);
keepComposeInView();
document.addEventListener("visibilitychange", () => (document.hidden ? suspend() : resume()));
start();
