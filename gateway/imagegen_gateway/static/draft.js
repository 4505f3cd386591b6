// The draft: prompt, settings and start image of this tab, which survive a reload.

import { readSource, setStartImage } from "./start_image.js";

const DRAFT = "imagegen-draft";
const TAB = "imagegen-tab";
const PREFIX = "draft-";
const DELAY_MS = 300;

/** Whether inputs in the store belong to a draft. */
export const isDraft = (id) => id.startsWith(PREFIX);

function tab() {
  let id = sessionStorage.getItem(TAB);
  if (id === null) {
    id = `${PREFIX}${[...crypto.getRandomValues(new Uint32Array(4))].map((each) => each.toString(36)).join("")}`;
    sessionStorage.setItem(TAB, id);
  }
  return id;
}

/** Return the parameters of this tab's draft, in a new tab those of the last changed draft; null without a draft. */
export function readDraft() {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFT) ?? localStorage.getItem(DRAFT));
  } catch {
    return null;
  }
}

/** Store the parameters of the draft. */
export function writeDraft(asked) {
  const text = JSON.stringify(asked);
  try {
    sessionStorage.setItem(DRAFT, text);
    localStorage.setItem(DRAFT, text);
  } catch {
    // Without storage the draft is lost at a reload.
  }
}

let timer = null;

/** Store the start image of the draft a little later, once for several changes. */
export function writeStartImage(store) {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    const source = await readSource();
    const writing = source === null ? store.deleteInputs(tab()) : store.putInputs(tab(), source);
    await writing.catch(() => {});
  }, DELAY_MS);
}

/** Restore the start image of the draft. */
export async function restoreStartImage(store) {
  const source = await store.inputs(tab()).catch(() => null);
  if (source !== null) await setStartImage(source.image, source.mask, source.position);
}
