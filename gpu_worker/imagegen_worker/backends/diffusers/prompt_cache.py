"""Cache of text encoder outputs, by every byte of the arguments.

Outputs of calls alone and of calls that shared a forward differ by rounding. A call alone therefore stores its
output, a shared forward stores nothing, and the rows of a call for several images have keys of their own.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from imagegen_worker.backends import DeviceMemoryError
from imagegen_worker.backends.diffusers import outputs
from imagegen_worker.backends.diffusers.digests import content_digest
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.shared_forward import CallKind, Forward, ForwardGroup, SharedForwards
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.engines.continuous.cache import BoundedCache
from imagegen_worker.engines.continuous.calls import UNEQUAL, NotShareableError

_WHOLE_CALL = "whole call"
"""In `CallKind.compared`: a call that was run row by row was compared with the call as it is."""


class PromptCache:
    """The entries of one text encoder in a cache that several share. `encoder` identifies it."""

    def __init__(self, cache: BoundedCache[bytes, Any], encoder: Hashable) -> None:
        self._cache = cache
        self._encoder = encoder

    def key(self, adapters: Hashable, arguments: Mapping[str, Any]) -> bytes:
        """Return the key of a call. Raises `NotShareableError` for arguments of unknown types."""
        values = outputs.map_tensors(dict(arguments), content_digest)
        return repr(((self._encoder, adapters), values)).encode()

    def copy(self, key: bytes) -> Any:
        """Return a copy of the output of a call, which callers may change in place.

        None if it is not stored, or if there is no memory for the copy.
        """
        output = self._cache.get(key)
        return None if output is None else _copied(output)

    def put(self, key: bytes, output: Any) -> None:
        """Store a copy of the output of a call, unless it has a type that can't be copied or memory is short."""
        if (copied := _copied(output)) is not None:
            self._cache.put(key, copied, outputs.nbytes(copied))

    def run_rows(
        self,
        forwards: SharedForwards,
        call: ForwardGroup,
        adapters: Hashable,
        max_rows: int,
        whole: Forward,
    ) -> Any:
        """Return the output of one call of several rows; run each different row once, or not at all if stored.

        `whole` runs the call as it is, to compare. Raises `NotShareableError` if the rows depend on each other.
        """
        kind, (rows,) = call.kind, call.rows
        joined = kind.layout.join(call.arguments, call.rows)
        parts = [kind.layout.narrow(joined, index, index + 1) for index in range(rows)]
        keys = [b"row " + self.key(adapters, part) for part in parts]
        known = {key: self._cache.get(key) for key in keys}
        missing = {key: part for key, part in zip(keys, parts, strict=True) if known[key] is None}
        known |= self._run_missing(forwards, kind, missing, max_rows)
        copies = [outputs.map_tensors(known[key], torch.clone) for key in keys]
        output = outputs.merge(copies, [1] * rows, listed=kind.listed)
        if rows <= max_rows and kind.is_due(_WHOLE_CALL):
            if not outputs.is_close(output, whole(*call.alone[0])):
                raise NotShareableError(UNEQUAL, "the rows of a call depend on each other")
            kind.passed(_WHOLE_CALL)
        return output

    def _run_missing(
        self, forwards: SharedForwards, kind: CallKind, missing: Mapping[bytes, Any], max_rows: int
    ) -> dict[bytes, Any]:
        """Run and store rows by key, in forwards of at most `max_rows` rows; return their outputs."""
        made: dict[bytes, Any] = {}
        items = list(missing.items())
        for begin in range(0, len(items), max_rows):
            part: Sequence[tuple[bytes, Any]] = items[begin : begin + max_rows]
            rows = [row for _, row in part]
            group = ForwardGroup(kind, rows, [1] * len(rows), [((), row) for row in rows])
            for (key, _), output in zip(part, forwards.run(group, max_rows), strict=True):
                made[key] = outputs.map_tensors(output, torch.clone)
                self._cache.put(key, made[key], outputs.nbytes(made[key]))
        return made


def _copied(output: Any) -> Any:
    """Return a copy of a text encoder's output on its device; None for an unknown type or if memory is short."""
    try:
        with translated_errors():
            return outputs.map_tensors(output, torch.clone)
    except NotShareableError:
        return None
    except DeviceMemoryError as error:
        release_frames(error)
        return None
