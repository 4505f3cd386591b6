"""Masks of texts that a pipeline leaves out because every token counts (Qwen-Image does for one prompt).

Without a mask, calls whose prompts have other lengths can't be padded to one length. Where a call passes None for
the mask of its text, a mask of ones stands for it. Calls of one length still run without it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from imagegen_worker.engines.continuous.calls import UNEQUAL
from imagegen_worker.engines.continuous.unshareable import UnshareableKeys

_TEXT = "encoder_hidden_states"
_SUFFIX = "_mask"
_OF_TEXT = "encoder_attention_mask"
"""Name of a mask for `encoder_hidden_states` that does not begin with it."""
_MAX_MASKS = 64
_REJECTION = "rejection"


class ImpliedMasks:
    """The masks that calls of one model imply. After the model rejected one, it gets none for a number of calls.

    `unpassed`: the name of a mask for `encoder_hidden_states` that the pipeline does not even pass as None.
    """

    def __init__(self, unpassed: str | None = None) -> None:
        self._unpassed = unpassed
        self._rejections = UnshareableKeys()
        self._dtypes: dict[str, torch.dtype] = {}
        self._masks: dict[Any, torch.Tensor] = {}

    def add(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name, with the masks that it implies."""
        found = dict(arguments)
        if self._rejections.count(_REJECTION) is not None:
            return found
        passed = arguments if self._unpassed is None else {self._unpassed: None, **arguments}
        for name, mask in passed.items():
            text = _text_of(_OF_TEXT if name == self._unpassed else name, arguments)
            if text is None:
                continue
            if isinstance(mask, torch.Tensor):
                self._dtypes[name] = mask.dtype
            elif mask is None:
                found[name] = self._mask(text, self._dtypes.get(name, torch.int64))
        return found

    def reject(self) -> None:
        """Imply no masks in the next 64 calls, twice as many each time."""
        self._rejections.add(_REJECTION, UNEQUAL)
        self._masks.clear()

    def _mask(self, text: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        key = (*text.shape[:2], text.device, dtype)
        mask = self._masks.get(key)
        if mask is None:
            if len(self._masks) == _MAX_MASKS:
                self._masks.clear()
            mask = self._masks[key] = torch.ones(text.shape[:2], device=text.device, dtype=dtype)
            mask.is_implied = True  # type: ignore[attr-defined]
        return mask


def unneeded(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the masks that all calls imply, for texts of one length."""
    first, *others = calls
    return [
        name
        for name, mask in first.items()
        if _is_implied(mask)
        and all(_is_implied(call[name]) and call[name].shape[1] == mask.shape[1] for call in others)
    ]


def pads(calls: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a forward of these calls needs a mask that a call only implies."""
    needed = [name for name, mask in calls[0].items() if isinstance(mask, torch.Tensor) and _is_mask(name)]
    dropped = set(unneeded(calls))
    return any(name not in dropped and any(_is_implied(call[name]) for call in calls) for name in needed)


def _is_implied(value: Any) -> bool:
    return getattr(value, "is_implied", False) is True


def _is_mask(name: str) -> bool:
    return name.endswith(_SUFFIX)


def _text_of(name: str, arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the text that an argument is the mask of; None if it is no mask of a text."""
    if not _is_mask(name):
        return None
    text = arguments.get(_TEXT if name == _OF_TEXT else name.removesuffix(_SUFFIX))
    return text if isinstance(text, torch.Tensor) and text.ndim == 3 else None
