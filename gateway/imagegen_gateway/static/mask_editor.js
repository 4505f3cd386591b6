// The dialog in which the mask of the start image is painted.

import { find, setText } from "./dom.js";
import { drawStart, editableMask, maskCrop, removeMask, setMaskFile, targetSize } from "./start_image.js";

/** Shortest backing side of the canvas, so that the brush is drawn sharply over small images. */
const MIN_SIDE = 640;

let erasing = false;
/** Position of the brush on the canvas, 0 to 1 in both directions; null while it is outside. */
let brush = null;
let painting = false;

/** Open the dialog. */
export function openMaskEditor() {
  const size = targetSize();
  const scale = Math.max(1, MIN_SIDE / Math.min(size.width, size.height));
  const [width, height] = [Math.round(size.width * scale), Math.round(size.height * scale)];
  Object.assign(find("mask-canvas"), { width, height });
  find("mask-canvas").style.setProperty("--ratio", width / height);
  brush = null;
  setErasing(false);
  setText(find("mask-problem"), "");
  find("mask-dialog").showModal();
  find("mask-canvas").focus();
  draw();
}

function setErasing(value) {
  erasing = value;
  find("mask-paint").setAttribute("aria-pressed", String(!erasing));
  find("mask-erase").setAttribute("aria-pressed", String(erasing));
}

/** Return the radius of the brush, as a share of the shorter side of the image. */
const radius = () => Number(find("mask-size").value) / 200;

function draw() {
  const canvas = find("mask-canvas");
  const mask = editableMask();
  drawStart(canvas);
  find("mask-undo").disabled = !mask.canUndo;
  find("mask-redo").disabled = !mask.canRedo;
  if (brush === null) return;
  const context = canvas.getContext("2d");
  const length = radius() * Math.min(canvas.width, canvas.height);
  for (const [colour, width] of [["black", 5], ["white", 2]]) {
    Object.assign(context, { strokeStyle: colour, lineWidth: width });
    context.beginPath();
    context.arc(brush.x * canvas.width, brush.y * canvas.height, length, 0, 2 * Math.PI);
    context.stroke();
  }
}

// ---- strokes ----------------------------------------------------------------------------------------------

/** Return the brush in pixels of the mask. */
function inMask() {
  const part = maskCrop();
  const length = radius() * Math.min(part.width, part.height);
  return [part.x + brush.x * part.width, part.y + brush.y * part.height, length];
}

function begin() {
  painting = true;
  const [x, y, length] = inMask();
  editableMask().begin(x, y, length, erasing);
  draw();
}

function extend() {
  const [x, y] = inMask();
  editableMask().extend(x, y);
}

function placeBrush({ clientX, clientY }) {
  const { left, top, width, height } = find("mask-canvas").getBoundingClientRect();
  brush = { x: (clientX - left) / width, y: (clientY - top) / height };
}

function onPointerMove(event) {
  for (const each of painting ? event.getCoalescedEvents?.() ?? [event] : []) {
    placeBrush(each);
    extend();
  }
  placeBrush(event);
  draw();
}

function addPointer(canvas) {
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    placeBrush(event);
    begin();
  });
  canvas.addEventListener("pointermove", onPointerMove);
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (painting = false));
  canvas.addEventListener("pointerleave", () => {
    if (painting || document.activeElement === canvas) return;
    brush = null;
    draw();
  });
}

// ---- keyboard ---------------------------------------------------------------------------------------------

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onCanvasKey(event) {
  brush ??= { x: 0.5, y: 0.5 };
  if (ARROWS[event.key]) {
    const step = Math.max(0.01, radius() / 2);
    const [x, y] = ARROWS[event.key];
    const before = { ...brush };
    const move = (place, by) => Math.min(1, Math.max(0, place + by * step));
    if (event.shiftKey) begin();
    brush = { x: move(before.x, x), y: move(before.y, y) };
    if (event.shiftKey) extend();
  } else if (event.key === " ") begin();
  else return;
  painting = false;
  event.preventDefault();
  draw();
}

function onDialogKey(event) {
  const mask = editableMask();
  const pressed = event.key.toLowerCase();
  const size = find("mask-size");
  if ((event.ctrlKey || event.metaKey) && pressed === "z") event.shiftKey ? mask.redo() : mask.undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (pressed === "e") setErasing(!erasing);
  else if (pressed === "i") mask.invert();
  else if (pressed === "[") size.value = Number(size.value) - 2;
  else if (pressed === "]") size.value = Number(size.value) + 2;
  else return;
  event.preventDefault();
  draw();
}

/** Add the listeners of the dialog. */
export function addMaskEditor() {
  const canvas = find("mask-canvas");
  addPointer(canvas);
  canvas.addEventListener("keydown", onCanvasKey);
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) brush ??= { x: 0.5, y: 0.5 };
    draw();
  });
  find("mask-dialog").addEventListener("keydown", onDialogKey);
  find("mask-dialog").addEventListener("close", () => {
    removeMask(false);
    find("mask-open").focus();
  });
  find("mask-paint").addEventListener("click", () => setErasing(false));
  find("mask-erase").addEventListener("click", () => setErasing(true));
  for (const action of ["undo", "redo", "invert", "clear"]) {
    find(`mask-${action}`).addEventListener("click", () => {
      editableMask()[action]();
      draw();
    });
  }
  find("mask-size").addEventListener("input", draw);
  find("mask-file").addEventListener("change", async ({ target }) => {
    setText(find("mask-problem"), "");
    await setMaskFile(target.files[0]).catch((error) => setText(find("mask-problem"), error.message));
    target.value = "";
    draw();
  });
  find("mask-done").addEventListener("click", () => find("mask-dialog").close());
}
