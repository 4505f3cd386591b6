"""A result is the image of the seed with which the request began."""

from tests.simulation.witness import Ask, Violation


def right_image(ask: Ask, images: tuple[bytes, ...]) -> None:
    """Judge the frames of a result."""
    if images != (b"image of seed %d" % ask.seed,):
        raise Violation("right_image", f"{ask.key.hex()} with seed {ask.seed} got {images}", ask.key)
