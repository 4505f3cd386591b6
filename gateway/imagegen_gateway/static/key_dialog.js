// The dialog for the API key.

import { key } from "./api.js";
import { find, setText } from "./dom.js";

/** Open the dialog with the reason for it. */
export function openKeyDialog(reason) {
  setText(find("key-why"), reason);
  if (find("key-dialog").open) return;
  find("key").value = key.get();
  find("key-dialog").showModal();
}

/** Add the listeners; `onKey()` is called when the key was changed. */
export function addKeyDialog(onKey) {
  find("key-open").addEventListener("click", () => openKeyDialog("Stored in this tab only, until it is closed."));
  find("key-close").addEventListener("click", () => find("key-dialog").close());
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(find("key").value.trim());
    find("key-dialog").close();
    onKey();
  });
}
