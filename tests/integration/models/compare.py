"""Print the difference of a worker's image from the stock pipeline's, in steps of 255.

Run as `python -m tests.integration.models.compare FOLDER FAMILY`, in MKL's mode of the new process.
"""

import sys
from pathlib import Path

from tests.equality import pixel_difference
from tests.integration.models.recent import PIPELINES
from tests.integration.models.worker import make_images, stock_image


def main(folder, family):
    """Generate the image both ways, and print the difference."""
    _, (image,) = make_images(Path(folder))
    pipeline = PIPELINES[family]()
    pipeline.set_progress_bar_config(disable=True)
    print(pixel_difference(image, stock_image(pipeline)))


if __name__ == "__main__":
    main(*sys.argv[1:])
