// Where start images come from: a file, a drop anywhere on the page, or the clipboard.

import { find } from "./dom.js";
import { accepts } from "./models.js";
import { setStartImage } from "./start_image.js";

/** Add the listeners; `onProblem(error)` is called for files that can't be used. */
export function addImageSources(onProblem) {
  const use = async (file) => {
    try {
      if (!accepts("image")) throw new Error("This model does not accept a start image.");
      await setStartImage(file);
      find("prompt").focus();
    } catch (error) {
      onProblem(error);
    }
  };
  find("image").addEventListener("change", async ({ target }) => {
    if (target.files.length) await use(target.files[0]);
    target.value = "";
  });
  addDrop(use);
  document.addEventListener("paste", (event) => {
    const file = imageIn(event.clipboardData);
    if (file === null || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    use(file);
  });
}

/** Return the first image file of a drop or the clipboard, or null. */
function imageIn(data) {
  return [...(data?.files ?? [])].find(({ type }) => type.startsWith("image/")) ?? null;
}

function addDrop(use) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
  const show = (shown) => (find("drop").hidden = !shown);
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && show(false));
  document.addEventListener("drop", (event) => {
    show(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    const file = imageIn(event.dataTransfer) ?? event.dataTransfer.files[0];
    if (file) use(file);
  });
}
