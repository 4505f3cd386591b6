"""Exceptions of Pillow, which raises many kinds of them for damaged files."""

from collections.abc import Iterator
from contextlib import contextmanager

from imagegen_protocol import ImagegenError


@contextmanager
def os_errors() -> Iterator[None]:
    """Raise PIL's `UnidentifiedImageError`, an `OSError`, for any exception that Pillow raises in the block.

    An `OSError`, an `ImagegenError` and a `MemoryError` are raised unchanged.
    """
    try:
        yield
    except (OSError, ImagegenError, MemoryError):
        raise
    except Exception as error:
        from PIL import UnidentifiedImageError

        raise UnidentifiedImageError(f"the image can't be decoded: {error or type(error).__name__}") from error
