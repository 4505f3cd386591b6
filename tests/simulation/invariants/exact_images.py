"""A result has exactly the bytes of the images that one worker generated for the request."""

from typing import Any

from tests.simulation.fleet_record import Submission, Violation


def exact_images(submission: Submission, images: tuple[Any, ...]) -> None:
    """Check the frames of a result."""
    if tuple(map(bytes, images)) not in submission.generated:
        sizes = [len(image) for image in images]
        generated = [[len(image) for image in each] for each in submission.generated]
        text = f"{submission.key.hex()} got images of {sizes} bytes; generated were {generated}"
        raise Violation("exact_images", text, submission.key)
