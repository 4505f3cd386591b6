"""Texts of requests that are longer than a pipeline's text encoders take."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from imagegen_worker.core.model import ResolvedRequest

_NO_LIMIT = 1_000_000
"""A tokenizer without a maximum length states a larger one."""
_SEQUENCE = "max_sequence_length"
"""Argument of pipeline calls: the maximum length for the encoders that take long texts."""
_SHOWN = 60
"""Maximum number of characters of the ignored text in a warning."""


class PromptLimits:
    """The tokenizers of a pipeline, and the maximum lengths that its calls use, in tokens."""

    def __init__(self, pipeline: Any) -> None:
        parts = pipeline.components.values()
        self._tokenizers = [part for part in parts if isinstance(part, PreTrainedTokenizerBase)]
        parameters = inspect.signature(type(pipeline).__call__).parameters
        own = parameters[_SEQUENCE].default if _SEQUENCE in parameters else None
        self._sequence = own if isinstance(own, int) else getattr(pipeline, "tokenizer_max_length", None)

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """Return a warning for each text of a request whose end the text encoders ignore."""
        return tuple(self._warnings(request))

    def _warnings(self, request: ResolvedRequest) -> Iterator[str]:
        for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
            if text and (found := self._truncated(text, request.extra)) is not None:
                limit, count, ignored = found
                yield f"{name}: the text encoder takes {limit} tokens, got {count}; ignored: {ignored}"

    def _truncated(self, text: str, extra: Mapping[str, Any]) -> tuple[int, int, str] | None:
        """Return maximum, number of tokens and the ignored text; None if a text encoder takes the whole text.

        Where there are several, it is for the one that takes most.
        """
        found: list[tuple[int, int, str]] = []
        for tokenizer in self._tokenizers:
            limit = self._limit(tokenizer, extra)
            tokens = tokenizer(text, verbose=False)["input_ids"]
            if len(tokens) <= limit:
                return None
            found.append((limit, len(tokens), _ignored(tokenizer, text, limit)))
        return max(found, default=None)

    def _limit(self, tokenizer: PreTrainedTokenizerBase, extra: Mapping[str, Any]) -> int:
        sequence = extra.get(_SEQUENCE, self._sequence)
        limits = [each for each in (tokenizer.model_max_length, sequence) if isinstance(each, int)]
        return min(limits, default=_NO_LIMIT)


def _ignored(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> str:
    """Return the start of the text beyond the maximum number of tokens."""
    if not tokenizer.is_fast:
        return "the end"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    start, _ = encoded["offset_mapping"][max(limit - tokenizer.num_special_tokens_to_add(), 0)]
    rest = " ".join(text[start:].split())
    return f"{rest[:_SHOWN]!r}" + ("…" if len(rest) > _SHOWN else "")
