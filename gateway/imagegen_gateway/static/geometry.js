// Sizes and crops, as pure functions. Sizes are `{ width, height }` in pixels.

/** Aspect ratios offered by the form, as width and height. */
export const ASPECTS = [[1, 1], [5, 4], [4, 3], [3, 2], [16, 9], [21, 9], [4, 5], [3, 4], [2, 3], [9, 16]];
/** Area and multiple of sizes for models that have not reported theirs. */
const UNKNOWN = { area: 1024 * 1024, multiple: 16 };

/** Return the default size of a model from its parameters; null until a worker has reported it. */
export function defaultSize({ width = {}, height = {} }) {
  return width.default && height.default ? { width: width.default, height: height.default } : null;
}

/**
 * Return the size with about the area of the model's default size and the aspect ratio `ratio` (width by height):
 * multiples within the ranges of the model. A model without a default size gets at most the area of `own`.
 */
export function fitSize(ratio, { width = {}, height = {} }, own = null) {
  const size = defaultSize({ width, height });
  const fallback = Math.min(UNKNOWN.area, own === null ? UNKNOWN.area : own.width * own.height);
  const area = size === null ? fallback : size.width * size.height;
  const wanted = { width: Math.sqrt(area * ratio), height: Math.sqrt(area / ratio) };
  const scale = Math.min(1, (width.maximum ?? Infinity) / wanted.width, (height.maximum ?? Infinity) / wanted.height);
  return { width: toRange(wanted.width * scale, width), height: toRange(wanted.height * scale, height) };
}

function toRange(length, { minimum = 1, maximum = Infinity, multiple_of: multiple = UNKNOWN.multiple }) {
  const rounded = Math.round(length / multiple) * multiple;
  const [least, most] = [Math.ceil(minimum / multiple) * multiple, Math.floor(maximum / multiple) * multiple];
  return Math.max(least, Math.min(rounded, most));
}

/**
 * Return the largest part of an image, `{ x, y, width, height }`, with the aspect ratio of `target`.
 * `position`: 0 is the left or upper end, 1 the right or lower end.
 */
export function cropOf(source, target, position) {
  const scale = Math.min(source.width / target.width, source.height / target.height);
  const [width, height] = [target.width * scale, target.height * scale];
  return { x: (source.width - width) * position, y: (source.height - height) * position, width, height };
}

/** Whether a crop leaves out at least one pixel. */
export const isCropped = (source, crop) => source.width - crop.width >= 1 || source.height - crop.height >= 1;

/** Return a size with sides of at most `longest` pixels and the same aspect ratio. */
export function shrink({ width, height }, longest) {
  const scale = Math.min(1, longest / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}
