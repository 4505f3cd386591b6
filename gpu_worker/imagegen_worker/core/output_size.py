"""The size of an output whose request has an input image and states no size, or one side of it."""

import math
from dataclasses import dataclass

from imagegen_protocol import InvalidRequestError
from imagegen_protocol.limits import MIN_SIDE_PIXELS

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSizes:
    """The sizes that a model generates, in pixels."""

    model: str
    """Name of the model, for errors."""
    multiple: int
    """Divisor of each side."""
    max_side: int
    max_pixels: int
    """Maximum area of a size that follows from an image."""
    sizes: tuple[Size, ...] = ()
    """The only sizes that the model generates; empty: any within the limits."""

    def for_image(self, image: Size, width: int | None = None, height: int | None = None) -> Size:
        """Return the size of the output with the aspect ratio of the image, up to multiples.

        It is the size of the image, scaled down to the limits of the model, or up to its smallest sides. Stated
        sides are returned unchanged. Raises `InvalidRequestError` if no size of the model has the aspect ratio.
        """
        if width is not None and height is not None:
            return width, height
        if width is None and height is None and self.sizes:
            return min(self.sizes, key=lambda size: abs(math.log(size[0] * image[1] / (size[1] * image[0]))))
        scale = self._scale(image)
        if width is not None:
            scale = width / image[0]
        elif height is not None:
            scale = height / image[1]
        found = (width or self._round(image[0] * scale), height or self._round(image[1] * scale))
        if not all(self._least <= side <= self.max_side for side in found):
            raise InvalidRequestError(
                f"image: the model {self.model} generates sides of {self._least} to {self.max_side} pixels; no"
                f" such size has the aspect ratio of the image, {image[0]}x{image[1]}; set width and height"
            )
        return found

    @property
    def _least(self) -> int:
        return -(-MIN_SIDE_PIXELS // self.multiple) * self.multiple

    def _scale(self, image: Size) -> float:
        """Return the factor between the image and its output: 1 if the model generates the size of the image."""
        width, height = image
        largest = min(1.0, self.max_side / max(image), math.sqrt(self.max_pixels / (width * height)))
        return max(largest, self._least / min(image))

    def _round(self, side: float) -> int:
        # The tolerance keeps a multiple that the scale has made a little smaller.
        return math.floor(side / self.multiple + 1e-6) * self.multiple


def scaling_warnings(image: Size, output: Size) -> tuple[str, ...]:
    """Return a warning if an input image was scaled or cropped to the size of the output."""
    if image == output:
        return ()
    scale = max(output[0] / image[0], output[1] / image[1])
    covered = (round(image[0] * scale), round(image[1] * scale))
    done = [] if covered == image else [f"scaled to {covered[0]}x{covered[1]}"]
    done += [] if covered == output else [f"cropped to {output[0]}x{output[1]}"]
    return (f"image: {' and '.join(done)} pixels, from {image[0]}x{image[1]}",) if done else ()
