"""What the files of many pictures are called: a pattern with fields, filled in for each picture."""

import re
import string
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath

FIELDS = ("index", "seed", "prompt", "model", "image", "worker")
LATE_FIELDS = frozenset(("model", "worker"))
"""Known only once the picture is there."""
MAX_SLUG_LENGTH = 60
MAX_NAME_BYTES = 255
"""What a file system takes for one name."""

_SAMPLE: dict[str, int | str] = {
    "index": 0,
    "seed": 0,
    "prompt": "prompt",
    "model": "model",
    "image": 0,
    "worker": "worker",
}


class NamePattern:
    """A pattern such as `{index:03}-{prompt}.png`, checked. Raises `ValueError` saying what is wrong.

    `fields` are those that it has; `suffix` is its own, or empty: then the picture's format says it.
    """

    def __init__(self, pattern: str) -> None:
        try:
            pieces = list(string.Formatter().parse(pattern))
        except ValueError as error:
            raise ValueError(f"{pattern!r}: {error}; a brace itself is written twice") from error
        for _, name, specification, conversion in pieces:
            if name is not None and (name not in FIELDS or conversion or "{" in (specification or "")):
                shown = name + (f"!{conversion}" if conversion else "")
                raise ValueError(f"unknown field {{{shown}}}; known are {', '.join(f'{{{f}}}' for f in FIELDS)}")
        self.text = pattern
        self.fields = frozenset(name for _, name, _, _ in pieces if name is not None)
        # Only letters that the pattern says itself: a model's name may have dots, too.
        _, brace, tail = pattern.rpartition("}")
        self.suffix = PurePosixPath(f"x{tail}" if brace else tail).suffix
        self._check_path(self.fill(_SAMPLE))

    @property
    def tells_images_apart(self) -> bool:
        """Whether the images of one request get names of their own."""
        return not self.fields.isdisjoint(("image", "seed"))

    def numbered(self) -> "NamePattern":
        """Return the pattern with `-{image}` before its suffix."""
        stem = self.text.removesuffix(self.suffix) if self.suffix else self.text
        return NamePattern(f"{stem}-{{image}}{self.suffix}")

    def fill(self, values: Mapping[str, int | str]) -> str:
        """Return the name of a picture, with `/` where folders are meant. Raises `ValueError`."""
        try:
            return self.text.format_map(values)
        except ValueError as error:
            raise ValueError(f"{self.text!r}: {error}") from error

    def _check_path(self, sample: str) -> None:
        path = PurePosixPath(sample)
        if not path.name or sample.endswith("/"):
            raise ValueError(f"{self.text!r} is no name of a file")
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{self.text!r} leads out of the folder; say the folder with --out")


def slug(prompt: str) -> str:
    """Return a prompt as a piece of a file name: lower-case ASCII words with hyphens, at most 60 characters."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > MAX_SLUG_LENGTH:
        # Whole words, where there is one.
        words = words[: MAX_SLUG_LENGTH + 1].rpartition("-")[0] or words[:MAX_SLUG_LENGTH]
    return words or "prompt"


def plain(name: str) -> str:
    """Return the name of a model or a worker as a piece of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"
