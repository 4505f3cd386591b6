// The viewer: one image with its parameters, the next and previous ones, and the comparison with its start image.

import { fetchImage, fileOf } from "./api.js";
import { create, find, setText } from "./dom.js";
import { isExpired } from "./entries.js";
import { labels } from "./parameters.js";
import { parametersIn } from "./png.js";
import { curlOf, pythonOf } from "./snippets.js";

/** Distance of a swipe, in CSS pixels. */
const SWIPE = 50;
/** Images are enlarged at most by this factor. */
const MAX_SCALE = 8;

/**
 * The dialog. `source`: `images()` returns all images in order, `inputs(entry)` the start image and mask,
 * `kept(entry, index)` the file of an image that this browser keeps, or null.
 * `closed(shown)` is called with the last shown image.
 */
export class Viewer {
  #source;
  #shown = null;
  #inputs = null;
  /** The file of a favourite that the gateway no longer has. */
  #file = null;
  #urls = [];

  constructor(source, closed) {
    this.#source = source;
    find("viewer").addEventListener("close", () => {
      this.#release();
      closed(this.#shown);
    });
    this.#addNavigation();
    this.#addCopying();
  }

  /** The shown image, `{ entry, index, image }`. */
  get shown() {
    return this.#shown;
  }

  /** Open the dialog with an image. */
  open(entry, index) {
    const found = this.#source.images().find((each) => each.entry === entry && each.index === index);
    if (found) this.#show(found);
  }

  /** Show the next image with 1, the previous one with -1, if there is one. */
  move(by) {
    const images = this.#source.images();
    const next = images[this.#place(images) + by];
    if (next) this.#show(next);
  }

  /** Show the current state of the favourite mark. */
  showFavourite() {
    const { entry, index } = this.#shown;
    find("viewer-favourite").setAttribute("aria-pressed", String(entry.favourites.includes(index)));
  }

  /** Close the dialog. */
  close() {
    find("viewer").close();
  }

  #place(images) {
    return images.findIndex(({ entry, index }) => entry === this.#shown.entry && index === this.#shown.index);
  }

  #show(shown) {
    const { entry, image } = shown;
    const { prompt } = entry.job;
    this.#shown = shown;
    this.#release();
    const element = find("viewer-image");
    element.onerror = () => this.#showKept(shown);
    Object.assign(element, { src: fileOf(image), alt: prompt, width: image.width, height: image.height });
    this.#showExpired(false);
    const box = find("viewer-box");
    box.style.setProperty("--ratio", image.width / image.height);
    box.style.setProperty("--widest", `${image.width * MAX_SCALE}px`);
    setText(find("viewer-prompt"), prompt);
    find("viewer-prompt").scrollTop = 0;
    const name = `${nameOf(prompt)}-${image.seed}.${image.format}`;
    Object.assign(find("viewer-download"), { href: fileOf(image), download: name });
    this.#showPlace();
    this.showFavourite();
    this.#showParameters({});
    if (!find("viewer").open) find("viewer").showModal();
    this.#loadInputs(shown).catch(() => {});
    if (!isExpired(entry) && image.format === "png") this.#loadParameters(shown).catch(() => {});
  }

  /** Show the file of a favourite that this browser keeps, or that the image has expired. */
  async #showKept(shown) {
    const file = await this.#source.kept(shown.entry, shown.index);
    if (this.#shown !== shown) return;
    find("viewer-image").onerror = null;
    this.#file = file;
    this.#showExpired(file === null);
    if (file === null) return;
    find("viewer-image").src = this.#urlOf(file);
    find("viewer-download").href = find("viewer-image").src;
  }

  #showExpired(expired) {
    find("viewer-image").hidden = expired;
    find("viewer-expired").hidden = !expired;
    for (const id of ["viewer-download", "viewer-copy-image", "viewer-start"]) find(id).hidden = expired;
  }

  /** Return the file of the shown image. Throws `Error` if it has expired. */
  async file() {
    return this.#file ?? fetchImage(this.#shown.image);
  }

  #showPlace() {
    const images = this.#source.images();
    const place = this.#place(images);
    setText(find("viewer-place"), `${place + 1} of ${images.length}`);
    find("viewer-previous").disabled = place <= 0;
    find("viewer-next").disabled = place >= images.length - 1;
  }

  #showParameters(embedded) {
    const { entry, image } = this.#shown;
    const size = `${image.width} × ${image.height}`;
    const all = { ...entry.asked, ...embedded, size, seed: image.seed, output_format: image.format };
    const rows = Object.entries(labels())
      .filter(([name]) => all[name] !== undefined && all[name] !== null)
      .map(([name, label]) => [create("dt", {}, label), create("dd", {}, String(all[name]))]);
    find("viewer-parameters").replaceChildren(...rows.flat());
  }

  /** Add the parameters that the worker has used, which PNG files contain. */
  async #loadParameters(shown) {
    const embedded = parametersIn(await (await fetchImage(shown.image)).arrayBuffer());
    if (embedded !== null && this.#shown === shown) this.#showParameters(embedded);
  }

  async #loadInputs(shown) {
    const inputs = await this.#source.inputs(shown.entry);
    if (this.#shown !== shown) return;
    this.#inputs = inputs;
    find("viewer-compare").hidden = inputs === null;
    find("viewer-inputs").hidden = inputs === null;
    if (inputs === null) return;
    find("viewer-before").src = this.#urlOf(inputs.image);
    find("viewer-start-file").href = this.#urlOf(inputs.image);
    find("viewer-mask-file").hidden = !inputs.mask;
    if (inputs.mask) find("viewer-mask-file").href = this.#urlOf(inputs.mask);
  }

  #urlOf(blob) {
    this.#urls.push(URL.createObjectURL(blob));
    return this.#urls.at(-1);
  }

  #release() {
    for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url);
    this.#inputs = null;
    this.#file = null;
    find("viewer-before").removeAttribute("src");
    find("viewer-before").hidden = true;
    find("viewer-compare").hidden = true;
    find("viewer-inputs").hidden = true;
    find("compare").value = 0;
  }

  // ---- navigation -------------------------------------------------------------------------------------------

  #addNavigation() {
    find("viewer-previous").addEventListener("click", () => this.move(-1));
    find("viewer-next").addEventListener("click", () => this.move(1));
    find("viewer-close").addEventListener("click", () => this.close());
    find("viewer").addEventListener("click", ({ target }) => target === find("viewer") && this.close());
    find("viewer").addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by === undefined || event.target.matches("input") || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      this.move(by);
    });
    find("compare").addEventListener("input", ({ target }) => {
      find("viewer-before").hidden = Number(target.value) === 0;
      find("viewer-box").style.setProperty("--share", `${target.value}%`);
    });
    this.#addSwipe(find("viewer-media"));
  }

  #addSwipe(media) {
    let from = null;
    media.addEventListener("pointerdown", (event) => {
      from = event.pointerType === "mouse" || event.target.matches("input, button") ? null : event;
    });
    media.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const [x, y] = [event.clientX - from.clientX, event.clientY - from.clientY];
      from = null;
      if (Math.abs(x) > SWIPE && Math.abs(x) > 2 * Math.abs(y)) this.move(x < 0 ? 1 : -1);
    });
    media.addEventListener("pointercancel", () => (from = null));
  }

  // ---- copying ----------------------------------------------------------------------------------------------

  #addCopying() {
    const asked = () => {
      const { entry, image } = this.#shown;
      const { n, ...others } = entry.asked;
      return { ...others, seed: image.seed };
    };
    const copies = {
      prompt: ["Prompt copied.", () => copyText(this.#shown.entry.asked.prompt)],
      image: ["Image copied.", async () => copyImage(await this.file())],
      curl: ["Command copied.", () => copyText(curlOf(asked(), this.#inputs, this.#shown.image.format))],
      python: ["Program copied.", () => copyText(pythonOf(asked(), this.#inputs, this.#shown.image.format))],
    };
    for (const [name, [done, copy]] of Object.entries(copies)) {
      find(`viewer-copy-${name}`).addEventListener("click", async () => {
        const text = await copy().then(() => done, (error) => `Not copied: ${error.message}`);
        setText(find("viewer-note"), text);
      });
    }
  }
}

async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Without TLS, browsers offer the clipboard only to localhost.
  const field = create("textarea", { value: text, className: "unseen", "aria-hidden": "true" });
  find("viewer").append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

async function copyImage(file) {
  if (!navigator.clipboard?.write) throw new Error("the browser allows this only over HTTPS; use Download");
  const bitmap = await createImageBitmap(file);
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
}

function nameOf(prompt) {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  return words.slice(0, 40).replace(/^-|-$/g, "") || "image";
}
