// The start image of the form, cropped to the size that will be generated, and its mask.

import { find, setText } from "./dom.js";
import { cropOf, fitSize, isCropped, shrink } from "./geometry.js";
import { Mask, createCanvas, drawOverlay, fromFile, toBlackAndWhite } from "./mask.js";
import { accepts, parameters } from "./models.js";

/** Longest side of the stored source, in pixels. */
const MAX_SIDE = 2048;
/** Longest side of the mask, in pixels, whatever the size of the source. */
const MASK_SIDE = 1024;
const MASK_COLOUR = "#e0218a";

/** `{ source, mask, position }`: a canvas, a `Mask` of the same aspect ratio or null, and the place of the crop. */
let start = null;
let onChange = () => {};

/** Whether the form has a start image. */
export const hasStartImage = () => start !== null;

/** Call `callback()` after each change of the image, its mask or its crop. */
export function whenChanged(callback) {
  onChange = callback;
}

/** Return the size that will be generated: that of the form, or one fitted to the model. */
export function targetSize() {
  const [width, height] = ["width", "height"].map((name) => find(name));
  if (width.value && height.value && width.validity.valid && height.validity.valid) {
    return { width: Number(width.value), height: Number(height.value) };
  }
  return fitSize(start.source.width / start.source.height, parameters(), start.source);
}

const crop = () => cropOf(start.source, targetSize(), start.position);

/** Set the start image to an image file or blob; `mask` is a blob in the format of the API. Throws `Error`. */
export async function setStartImage(blob, mask = null, position = 0.5) {
  const source = toCanvas(await decode(blob), MAX_SIDE);
  start = { source, mask: null, position };
  if (mask !== null) await setMaskFile(mask);
  find("start-position").value = position;
  changed();
}

/** Remove the start image and its mask. */
export function removeStartImage() {
  start = null;
  changed();
}

/** Set the mask to an image file that has the aspect ratio of the start image or of its crop. Throws `Error`. */
export async function setMaskFile(blob) {
  const bitmap = await decode(blob);
  const mask = newMask();
  const { width, height } = mask.canvas;
  const ratio = bitmap.width / bitmap.height;
  const part = crop();
  if (matches(ratio, start.source)) mask.replace(fromFile(bitmap, width, height));
  else if (matches(ratio, part)) mask.replace(place(bitmap, part, mask.canvas));
  else {
    const { width: wanted, height: tall } = start.source;
    const sizes = `it has ${bitmap.width} × ${bitmap.height} pixels, the start image ${wanted} × ${tall}`;
    throw new Error(`The mask needs the aspect ratio of the start image: ${sizes}.`);
  }
  start.mask = mask;
  changed();
}

const matches = (ratio, { width, height }) => Math.abs(ratio * height - width) < 1 + width / 100;

function place(bitmap, part, { width, height }) {
  const scale = width / start.source.width;
  const canvas = createCanvas(width, height);
  const inner = fromFile(bitmap, Math.round(part.width * scale), Math.round(part.height * scale));
  canvas.getContext("2d").drawImage(inner, part.x * scale, part.y * scale);
  return canvas;
}

function newMask() {
  const { width, height } = start.source;
  const scale = MASK_SIDE / Math.max(width, height);
  return new Mask(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
}

/** Return the mask, new if there is none. */
export function editableMask() {
  start.mask ??= newMask();
  return start.mask;
}

/** Remove the mask if it is empty, or with `always`. */
export function removeMask(always = true) {
  if (start?.mask && (always || start.mask.isEmpty)) start.mask = null;
  changed();
}

/** Return the part of the mask that the crop shows, in pixels of the mask. */
export function maskCrop() {
  const scale = editableMask().canvas.width / start.source.width;
  const { x, y, width, height } = crop();
  return { x: x * scale, y: y * scale, width: width * scale, height: height * scale };
}

/** Draw the cropped image, and its mask if there is one, on a whole canvas. */
export function drawStart(canvas) {
  drawCropped(canvas);
  if (start.mask !== null) drawOverlay(canvas.getContext("2d"), start.mask.canvas, maskCrop(), MASK_COLOUR);
}

function drawCropped(canvas) {
  const context = canvas.getContext("2d");
  const part = crop();
  context.imageSmoothingQuality = "high";
  context.drawImage(start.source, part.x, part.y, part.width, part.height, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** Return the inputs of a request: `{ image, mask, size }` with PNG blobs, or null without a start image. */
export async function readInputs() {
  if (start === null) return null;
  const size = targetSize();
  const image = drawCropped(createCanvas(size.width, size.height));
  const used = start.mask !== null && accepts("mask");
  const mask = used ? toBlackAndWhite(start.mask.canvas, maskCrop(), size) : null;
  return { image: await toBlob(image), mask: mask && (await toBlob(mask)), size };
}

/** Return the source for the store: `{ image, mask, position }`, or null. */
export async function readSource() {
  if (start === null) return null;
  const { source, position } = start;
  const painted = start.mask === null || start.mask.isEmpty ? null : start.mask.canvas;
  const size = painted && { width: painted.width, height: painted.height };
  const mask = painted && toBlackAndWhite(painted, { x: 0, y: 0, ...size }, size);
  return { image: await toBlob(source), mask: mask && (await toBlob(mask)), position };
}

/** Show the start image as it will be sent. */
export function showStart() {
  find("start-shown").hidden = start === null;
  find("start-choose").hidden = start !== null || !accepts("image");
  if (start === null) return;
  const size = targetSize();
  Object.assign(find("start-canvas"), size);
  drawStart(find("start-canvas"));
  const part = crop();
  const cropped = isCropped(start.source, part);
  const { width, height } = start.source;
  const from = cropped ? `, cropped from ${width} × ${height}` : "";
  setText(find("start-size"), `${size.width} × ${size.height}${from}`);
  find("start-position-field").hidden = !cropped;
  find("mask-open").hidden = !accepts("mask");
  setText(find("mask-open"), start.mask === null ? "Paint a mask" : "Edit the mask");
  find("mask-remove").hidden = start.mask === null;
}

function changed() {
  showStart();
  onChange();
}

/** Move the crop: 0 is the left or upper end of the image, 1 the right or lower end. */
export function moveCrop(position) {
  start.position = position;
  changed();
}

async function decode(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    throw new Error("This file is not an image that the browser can read; use a PNG, JPEG or WebP file.");
  }
}

function toCanvas(bitmap, longest) {
  const { width, height } = shrink(bitmap, longest);
  const canvas = createCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  // Models read no transparency.
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas;
}

const toBlob = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
