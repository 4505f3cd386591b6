// The size of the form: aspect ratios that set the fields for width and height.

import { find } from "./dom.js";
import { ASPECTS, defaultSize, fitSize } from "./geometry.js";
import { parameters } from "./models.js";

/** Offer the aspect ratios as sizes of the selected model, and select the one of the current size. */
export function showAspects() {
  const known = parameters();
  const own = defaultSize(known);
  const options = (own === null ? [] : ASPECTS).map(([width, height]) => {
    const size = fitSize(width / height, known);
    return new Option(`${width}:${height}`, `${size.width}x${size.height}`);
  });
  find("aspect").replaceChildren(new Option("Default", ""), ...options, new Option("Custom", "custom"));
  showAspect();
}

/** Select the aspect ratio of the current size. */
export function showAspect() {
  const [width, height] = [find("width").value, find("height").value];
  const value = width || height ? `${width}x${height}` : "";
  find("aspect").value = value;
  if (find("aspect").selectedIndex < 0) find("aspect").value = "custom";
}

/** Set width and height to the selected aspect ratio. */
export function useAspect() {
  const { value } = find("aspect");
  if (value === "custom") {
    find("width").focus();
    return;
  }
  const [width = "", height = ""] = value.split("x");
  find("width").value = width;
  find("height").value = height;
}

/** Swap width and height. */
export function swapSides() {
  const { width, height } = { width: find("width").value, height: find("height").value };
  find("width").value = height;
  find("height").value = width;
  showAspect();
}
