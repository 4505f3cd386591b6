"""Whether a picture can be written somewhere, found out before anybody draws it."""

import io
import os
from pathlib import Path

_PLAIN_SUFFIXES = frozenset(("", ".png", ".jpg", ".jpeg", ".webp"))
"""Known without asking Pillow, which takes longer to import than all the rest."""


def check_target(path: Path) -> None:
    """Check what `GenerationResult.save` will be given. Raises `ValueError` saying what is wrong."""
    folder = path.parent
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    # Files are made anew or written over; the folder counts for the one, the file for the other.
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{path} can't be written")
    if path.suffix.lower() not in _PLAIN_SUFFIXES:
        _check_suffix(path.suffix.lower())


def _check_suffix(suffix: str) -> None:
    from PIL import Image

    kind = Image.registered_extensions().get(suffix)
    if kind not in Image.SAVE:
        raise ValueError(f"no picture format to write goes by {suffix!r}; .png, .jpg, .webp and some 40 others do")
    try:
        # Some formats take no colours, some want a library that is not there.
        Image.new("RGB", (16, 16)).save(io.BytesIO(), format=kind)
    except (OSError, ValueError) as error:
        raise ValueError(f"pictures can't be written as {suffix!r} ({kind}): {error}") from error
