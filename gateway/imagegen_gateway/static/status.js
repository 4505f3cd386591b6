// What is wrong at the moment, in words: lasting conditions in the banner, single events as a notice.

import { find, setText } from "./dom.js";

/** Conditions, the most important first: only the first one that holds is shown. */
const CONDITIONS = ["gateway", "broker", "gpu", "model"];
const RECOVERY_MS = 4000;
const NOTICE_MS = 10_000;
const UNDO_MS = 30_000;

const conditions = new Map();
let bannerTimer = null;
let noticeTimer = null;

/** Show a condition until it is cleared with null; `recovery` is then shown for a few seconds. */
export function setCondition(name, text, recovery = null) {
  const before = conditions.get(name) ?? null;
  if (before?.text === (text ?? undefined)) return;
  if (text === null) conditions.delete(name);
  else conditions.set(name, { text, recovery });
  const first = CONDITIONS.map((each) => conditions.get(each)).find((each) => each);
  if (first) showBanner(first.text, "banner");
  else if (before?.recovery) showBanner(before.recovery, "banner good", RECOVERY_MS);
  else if (before) find("banner").hidden = true;
}

function showBanner(text, className, milliseconds = null) {
  clearTimeout(bannerTimer);
  const banner = find("banner");
  banner.className = className;
  banner.hidden = false;
  setText(banner, text);
  if (milliseconds !== null) bannerTimer = setTimeout(() => (banner.hidden = true), milliseconds);
}

/** Show a notice for some seconds, until the next one, or until it is closed; `undo` adds a button. */
export function notify(text, undo = null) {
  clearTimeout(noticeTimer);
  const notice = find("notice");
  notice.hidden = false;
  setText(find("notice-text"), text);
  find("notice-undo").hidden = undo === null;
  find("notice-undo").onclick = async () => {
    hideNotice();
    await undo();
  };
  noticeTimer = setTimeout(hideNotice, undo === null ? NOTICE_MS : UNDO_MS);
}

/** Hide the notice. */
export function hideNotice() {
  clearTimeout(noticeTimer);
  if (find("notice").contains(document.activeElement)) find("prompt").focus();
  find("notice").hidden = true;
}
