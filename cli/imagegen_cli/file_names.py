"""Patterns for the names of output files, with fields that are filled in for each image."""

import re
import string
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath

FIELDS = ("index", "seed", "prompt", "model", "image", "worker")
RESULT_FIELDS = frozenset(("model", "worker"))
"""Fields known only from the result."""
MAX_SLUG_LENGTH = 60
MAX_NAME_BYTES = 255
"""Maximum length of a file name in common file systems."""

_SAMPLE: dict[str, int | str] = {
    "index": 0,
    "seed": 0,
    "prompt": "prompt",
    "model": "model",
    "image": 0,
    "worker": "worker",
}


class FileNamePattern:
    """A validated pattern such as `{index:03}-{prompt}.png`.

    `fields` are the names it uses; `suffix` is its suffix, empty if the image's format determines it. Raises
    `ValueError` for an invalid pattern.
    """

    def __init__(self, pattern: str) -> None:
        try:
            pieces = list(string.Formatter().parse(pattern))
        except ValueError as error:
            raise ValueError(f"{pattern!r}: {error}; write a literal brace twice") from error
        for _, name, specification, conversion in pieces:
            if name is not None and (name not in FIELDS or conversion or "{" in (specification or "")):
                shown = name + (f"!{conversion}" if conversion else "")
                raise ValueError(
                    f"unknown field {{{shown}}}; expected one of {', '.join(f'{{{f}}}' for f in FIELDS)}"
                )
        self.text = pattern
        self.fields = frozenset(name for _, name, _, _ in pieces if name is not None)
        # Only the literal end of the pattern: the name of a model may contain dots.
        _, brace, tail = pattern.rpartition("}")
        self.suffix = PurePosixPath(f"x{tail}" if brace else tail).suffix
        self._check_path(self.fill(_SAMPLE))

    @property
    def distinguishes_images(self) -> bool:
        """Whether the images of one request get different names."""
        return not self.fields.isdisjoint(("image", "seed"))

    def numbered(self) -> "FileNamePattern":
        """Return the pattern with `-{image}` before its suffix."""
        stem = self.text.removesuffix(self.suffix) if self.suffix else self.text
        return FileNamePattern(f"{stem}-{{image}}{self.suffix}")

    def fill(self, values: Mapping[str, int | str]) -> str:
        """Return the file name of an image; `/` separates folders. Raises `ValueError`."""
        try:
            return self.text.format_map(values)
        except ValueError as error:
            raise ValueError(f"{self.text!r}: {error}") from error

    def _check_path(self, sample: str) -> None:
        path = PurePosixPath(sample)
        if not path.name or sample.endswith("/"):
            raise ValueError(f"expected a file name, got {self.text!r}")
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{self.text!r} leads out of the output folder; set the folder with --out")


def slug(prompt: str) -> str:
    """Return a prompt as part of a file name: lower-case ASCII words with hyphens, at most 60 characters."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > MAX_SLUG_LENGTH:
        # Cut at the end of a word if possible.
        words = words[: MAX_SLUG_LENGTH + 1].rpartition("-")[0] or words[:MAX_SLUG_LENGTH]
    return words or "prompt"


def sanitize(name: str) -> str:
    """Return the name of a model or worker as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"
