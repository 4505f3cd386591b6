"""Choices read from bytes, so that a coverage-guided fuzzer can drive structured input."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """A reader of bytes that makes choices. Beyond the last byte, each choice is the first option."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all bytes are used."""
        return self._at >= len(self._data)

    def integer(self, low: int, high: int) -> int:
        """Return an integer of a range, both ends included."""
        span = high - low + 1
        size = ((span - 1).bit_length() + 7) // 8
        return low + int.from_bytes(self.bytes(size), "big") % span

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.integer(0, len(options) - 1)]

    def boolean(self) -> bool:
        """Return True or False."""
        return self.pick((False, True))

    def bytes(self, size: int) -> bytes:
        """Return the next bytes; fewer at the end."""
        part = self._data[self._at : self._at + size]
        self._at += size
        return part

    def rest(self) -> bytes:
        """Return all remaining bytes."""
        return self.bytes(len(self._data))
