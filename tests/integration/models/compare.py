"""How far a worker's image is from the stock pipeline's: `python -m tests.integration.models.compare FOLDER FAMILY`.

In a process of its own, so that MKL has the mode of that process. Prints the difference in steps of 255.
"""

import sys
from pathlib import Path

from tests.equality import pixel_difference
from tests.integration.models.recent import PIPELINES
from tests.integration.models.worker import make_images, stock_image


def main(folder, family):
    """Make the image both ways, and print the difference."""
    _, (image,) = make_images(Path(folder))
    pipeline = PIPELINES[family]()
    pipeline.set_progress_bar_config(disable=True)
    print(pixel_difference(image, stock_image(pipeline)))


if __name__ == "__main__":
    main(*sys.argv[1:])
