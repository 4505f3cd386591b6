"""A worker whose images are noise: PNG can't compress them, so a test chooses the size of an answer."""

import random

from PIL import Image

from imagegen_worker.backends import simulated
from imagegen_worker.cli import main

CHANNELS = 3


def noise(row, worker):
    """Return an image whose pixels depend on the seed only."""
    width, height = row.request.width, row.request.height
    pixels = random.Random(row.seed).randbytes(CHANNELS * width * height)
    return Image.frombytes("RGB", (width, height), pixels)


if __name__ == "__main__":
    simulated.draw = noise
    main(prog_name="imagegen-worker")
