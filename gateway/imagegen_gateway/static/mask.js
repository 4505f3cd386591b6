// The mask of a start image: operations that can be undone, drawn on a canvas whose opaque areas are generated anew.

/** Return a canvas of a size, cleared. */
export function createCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

const contextOf = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

/** A mask of `width` by `height` pixels. Strokes are in its pixels. */
export class Mask {
  #operations = [];
  #undone = [];

  constructor(width, height) {
    this.canvas = createCanvas(width, height);
  }

  get canUndo() {
    return this.#operations.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** Whether no area is generated anew. */
  get isEmpty() {
    const { width, height } = this.canvas;
    const { data } = contextOf(this.canvas).getImageData(0, 0, width, height);
    for (let at = 3; at < data.length; at += 4) if (data[at] > 127) return false;
    return true;
  }

  /** Begin a stroke at a point; `erase` keeps the area instead. */
  begin(x, y, radius, erase) {
    this.#add({ kind: "stroke", radius, erase, points: [[x, y]] });
  }

  /** Continue the last stroke to a point. */
  extend(x, y) {
    const stroke = this.#operations.at(-1);
    const from = stroke.points.at(-1);
    stroke.points.push([x, y]);
    draw(contextOf(this.canvas), { ...stroke, points: [from, [x, y]] });
  }

  /** Swap the areas that are kept and generated anew. */
  invert() {
    this.#add({ kind: "invert" });
  }

  /** Keep all areas. */
  clear() {
    this.#add({ kind: "clear" });
  }

  /** Replace the mask by the opaque areas of a canvas or an image of the same aspect ratio. */
  replace(image) {
    this.#add({ kind: "replace", image });
  }

  undo() {
    if (!this.canUndo) return;
    this.#undone.push(this.#operations.pop());
    this.#drawAll();
  }

  redo() {
    if (!this.canRedo) return;
    this.#operations.push(this.#undone.pop());
    this.#drawAll();
  }

  #add(operation) {
    this.#operations.push(operation);
    this.#undone = [];
    draw(contextOf(this.canvas), operation);
  }

  #drawAll() {
    const context = contextOf(this.canvas);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const operation of this.#operations) draw(context, operation);
  }
}

function draw(context, { kind, radius, erase, points, image }) {
  const { width, height } = context.canvas;
  context.save();
  context.fillStyle = context.strokeStyle = "white";
  if (kind === "clear" || kind === "replace") context.clearRect(0, 0, width, height);
  if (kind === "replace") context.drawImage(image, 0, 0, width, height);
  if (kind === "invert") {
    context.globalCompositeOperation = "xor";
    context.fillRect(0, 0, width, height);
  }
  if (kind === "stroke") {
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    Object.assign(context, { lineWidth: radius * 2, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.arc(...points[0], radius, 0, 2 * Math.PI);
    context.fill();
    context.beginPath();
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
  context.restore();
}

/**
 * Return a canvas whose opaque areas are those that a mask file generates anew: its transparent areas, or its white
 * ones if it has no transparency.
 */
export function fromFile(bitmap, width, height) {
  const canvas = createCanvas(width, height);
  const context = contextOf(canvas);
  context.drawImage(bitmap, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const { data } = pixels;
  let transparent = false;
  for (let at = 3; at < data.length; at += 4) transparent ||= data[at] < 255;
  for (let at = 0; at < data.length; at += 4) {
    const light = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
    const alpha = transparent ? 255 - data[at + 3] : light;
    data.set([255, 255, 255, alpha], at);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Return a part of a mask in the format of the API: white areas are generated anew, black ones are kept. */
export function toBlackAndWhite(canvas, crop, { width, height }) {
  const result = createCanvas(width, height);
  const context = contextOf(result);
  context.fillRect(0, 0, width, height);
  context.drawImage(canvas, crop.x, crop.y, crop.width, crop.height, 0, 0, width, height);
  return result;
}

/** Draw a part of a mask over an image that fills a canvas, in one half-transparent colour. */
export function drawOverlay(context, canvas, crop, colour) {
  const { width, height } = context.canvas;
  const tinted = createCanvas(width, height);
  const tint = tinted.getContext("2d");
  tint.drawImage(canvas, crop.x, crop.y, crop.width, crop.height, 0, 0, width, height);
  tint.globalCompositeOperation = "source-in";
  tint.fillStyle = colour;
  tint.fillRect(0, 0, width, height);
  context.save();
  context.globalAlpha = 0.55;
  context.drawImage(tinted, 0, 0);
  context.restore();
}
