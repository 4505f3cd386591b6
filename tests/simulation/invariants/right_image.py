"""A result has exactly the bytes of the images that one worker generated for the request."""

from typing import Any

from tests.simulation.witness import Ask, Violation


def right_image(ask: Ask, images: tuple[Any, ...]) -> None:
    """Check the frames of a result."""
    if tuple(map(bytes, images)) not in ask.made:
        sizes = [len(image) for image in images]
        made = [[len(image) for image in each] for each in ask.made]
        text = f"{ask.key.hex()} got images of {sizes} bytes, which no worker made; made were {made}"
        raise Violation("right_image", text, ask.key)
