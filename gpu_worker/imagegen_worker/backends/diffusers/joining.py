"""Which calls of a model can share a forward, and how their arguments are joined and its outputs split.

No model is known here. `describe` gives each argument of a call a `Layout` by one rule:

- n, the call's rows, is dimension 0 of the first tensor of two or more dimensions, or the length of the first list
  of tensors;
- a tensor of one value is one value for each row (a timestep); a tensor whose dimension 0 is n is concatenated;
  a list of n tensors is lengthened; dictionaries and other lists are walked;
- any other tensor has no batch dimension (position ids): it is shared, and must be equal in content;
- everything else must be equal.

Calls with equal layouts can share. Text of unlike lengths is padded, but only where the model is given a mask for
it. That a tensor has a batch dimension does not mean that the model reads it row by row; see `row_evidence`. The
first forward of each kind is checked against a forward for each call, and so are later ones from time to time (see
`stages`); a wrong guess costs speed, never an image.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from imagegen_worker.engines.continuous.calls import NotJoinableError

_PLAIN = (type(None), bool, int, float, str, bytes, Enum, torch.dtype, torch.device, torch.Size)
_NUMBERS = (torch.int32, torch.int64, torch.float32, torch.float64)
"""Schedulers give timesteps in any of these; models make floats of them first thing."""

_digests: Any = WeakTensorKeyDictionary()
"""Content of shared tensors, so that each is read from the device once and not at every step."""


class Layout(Protocol):
    """What calls must have in common in one argument. Hashable; compared by content."""

    @property
    def free(self) -> bool:
        """Whether there are lengths in it that may differ between calls."""

    def join(self, parts: Sequence[Any], rows: Sequence[int]) -> Any:
        """Return the argument of the joined call, from those of calls with so many rows each."""

    def narrow(self, joined: Any, begin: int, end: int) -> Any:
        """Return the joined argument for the rows from `begin` to before `end` alone."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """A tensor with a batch dimension. `shape` is the rest; None where it may differ, and is padded with zeros."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int | None, ...]

    @property
    def free(self) -> bool:
        return None in self.shape

    def join(self, parts: Sequence[torch.Tensor], rows: Sequence[int]) -> torch.Tensor:
        if None in self.shape:
            longest = max(part.shape[1] for part in parts)
            parts = [_padded(part, longest) for part in parts]
        return torch.cat(list(parts))

    def narrow(self, joined: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        return joined[begin:end]


@dataclass(frozen=True, slots=True)
class _Numbers:
    """One value for each row, given as one value for the whole call or as n. `dtype` None: any of `_NUMBERS`."""

    dtype: torch.dtype | None
    device: torch.device
    free: ClassVar[bool] = False

    def join(self, parts: Sequence[torch.Tensor], rows: Sequence[int]) -> torch.Tensor:
        wide = parts[0].dtype
        for part in parts:
            wide = torch.promote_types(wide, part.dtype)
        return torch.cat([part.to(wide).reshape(-1).expand(n) for part, n in zip(parts, rows, strict=True)])

    def narrow(self, joined: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        return joined[begin:end]


@dataclass(frozen=True, slots=True)
class _RowList:
    """A list with one tensor for each row. `shapes` are those that all calls must have; None for a free length."""

    dtype: torch.dtype
    device: torch.device
    shapes: tuple[tuple[int | None, ...], ...]

    @property
    def free(self) -> bool:
        return any(None in shape for shape in self.shapes)

    def join(self, parts: Sequence[Sequence[torch.Tensor]], rows: Sequence[int]) -> list[torch.Tensor]:
        return [tensor for part in parts for tensor in part]

    def narrow(self, joined: list[torch.Tensor], begin: int, end: int) -> list[torch.Tensor]:
        return joined[begin:end]


@dataclass(frozen=True, slots=True)
class _Shared:
    """A tensor without a batch dimension; `digest` stands for its content."""

    digest: bytes
    free: ClassVar[bool] = False

    def join(self, parts: Sequence[Any], rows: Sequence[int]) -> Any:
        return parts[0]

    def narrow(self, joined: Any, begin: int, end: int) -> Any:
        return joined


@dataclass(frozen=True, slots=True)
class _Equal:
    """A plain value."""

    kind: type
    value: Any
    free: ClassVar[bool] = False

    def join(self, parts: Sequence[Any], rows: Sequence[int]) -> Any:
        return parts[0]

    def narrow(self, joined: Any, begin: int, end: int) -> Any:
        return joined


@dataclass(frozen=True, slots=True)
class _Unread:
    """A random generator that models take and, as a rule, leave alone; the stage makes sure."""

    free: ClassVar[bool] = False

    def join(self, parts: Sequence[Any], rows: Sequence[int]) -> Any:
        return parts[0]

    def narrow(self, joined: Any, begin: int, end: int) -> Any:
        return joined


@dataclass(frozen=True, slots=True)
class _Walked:
    """A dictionary, list or tuple with a layout for each item."""

    kind: type
    keys: tuple[Any, ...]
    items: tuple[Layout, ...]

    @property
    def free(self) -> bool:
        return any(item.free for item in self.items)

    def join(self, parts: Sequence[Any], rows: Sequence[int]) -> Any:
        values = [
            item.join([part[key] for part in parts], rows) for key, item in zip(self.keys, self.items, strict=True)
        ]
        return self._made(values)

    def narrow(self, joined: Any, begin: int, end: int) -> Any:
        values = [item.narrow(joined[key], begin, end) for key, item in zip(self.keys, self.items, strict=True)]
        return self._made(values)

    def _made(self, values: list[Any]) -> Any:
        if issubclass(self.kind, dict):
            return dict(zip(self.keys, values, strict=True))
        return tuple(values) if issubclass(self.kind, tuple) else values


@dataclass(frozen=True, slots=True)
class Description:
    """The rows of a call, and what other calls must have in common with it to share its forward.

    `listed`: the model takes its rows as a list, and so gives them.
    """

    rows: int
    listed: bool
    layout: Layout


@dataclass(frozen=True, slots=True)
class Leaf:
    """An argument that is joined row by row: the keys that lead to it, and its dimensions; 0 for a list."""

    path: tuple[Any, ...]
    ndim: int


def row_leaves(layout: Layout, path: tuple[Any, ...] = ()) -> Iterator[Leaf]:
    """Yield the arguments of a layout that are joined row by row."""
    match layout:
        case _Walked():
            for key, item in zip(layout.keys, layout.items, strict=True):
                yield from row_leaves(item, (*path, key))
        case _Rows():
            yield Leaf(path, len(layout.shape) + 1)
        case _Numbers():
            yield Leaf(path, 1)
        case _RowList():
            yield Leaf(path, 0)


def count_rows(arguments: Iterable[Any]) -> int:
    """Return the rows of a call; 1 if no argument tells."""
    return next((counted[0] for value in arguments if (counted := _count_rows(value)) is not None), 1)


def describe(arguments: Mapping[str, Any], *, exact: bool = False) -> Description:
    """Return what is to be known of a call.

    With `exact` every length must be equal, so that company changes the shape of nothing but the batch.
    Raises `NotJoinableError` if the call can share with none.
    """
    counted = _count_rows(arguments)
    if counted is None:
        raise NotJoinableError("no rows", "no argument is a tensor with a batch dimension")
    rows, listed = counted
    masked = set() if exact else _masked(arguments, rows)
    items = tuple(_layout(value, rows, listed, exact, name in masked, name) for name, value in arguments.items())
    return Description(rows, listed, _Walked(dict, tuple(arguments), items))


def _count_rows(value: Any) -> tuple[int, bool] | None:
    if isinstance(value, torch.Tensor):
        return (value.shape[0], False) if value.ndim >= 2 else None
    if isinstance(value, Mapping):
        value = list(value.values())
    elif isinstance(value, list | tuple) and value and all(isinstance(item, torch.Tensor) for item in value):
        return len(value), True
    if isinstance(value, list | tuple):
        return next((counted for item in value if (counted := _count_rows(item)) is not None), None)
    return None


def _masked(arguments: Mapping[str, Any], rows: int) -> set[str]:
    """Return the names of masks and of the text that they are for; their length may differ."""
    found: set[str] = set()
    for name, mask in arguments.items():
        if not (name.endswith("mask") and isinstance(mask, torch.Tensor) and mask.ndim == 2):
            continue
        for text_name in (name.removesuffix("_mask"), "encoder_hidden_states"):
            text = arguments.get(text_name)
            if (
                isinstance(text, torch.Tensor)
                and text.ndim == 3
                and text.shape[:2] == mask.shape == (rows, mask.shape[1])
            ):
                found |= {name, text_name}
                break
    return found


def _layout(value: Any, rows: int, listed: bool, exact: bool, masked: bool, name: str) -> Layout:
    if isinstance(value, torch.Tensor):
        return _tensor_layout(value, rows, masked)
    if isinstance(value, torch.Generator):
        return _Unread()
    if isinstance(value, Mapping):
        items = tuple(_layout(item, rows, listed, exact, False, f"{name}.{key}") for key, item in value.items())
        return _Walked(dict, tuple(value), items)
    if isinstance(value, list | tuple):
        tensors = [item for item in value if isinstance(item, torch.Tensor)]
        if len(value) == rows == len(tensors) and (listed or not _stacked(tensors, rows)):
            return _row_list_layout(tensors, exact)
        items = tuple(_layout(item, rows, listed, exact, False, f"{name}[{at}]") for at, item in enumerate(value))
        return _Walked(type(value), tuple(range(len(value))), items)
    if isinstance(value, _PLAIN):
        return _Equal(type(value), value)
    raise NotJoinableError("opaque argument", f"{name} is a {type(value).__name__}")


def _tensor_layout(value: torch.Tensor, rows: int, masked: bool) -> Layout:
    if (value.numel() == 1 and value.ndim <= 1) or value.shape == (rows,):
        return _Numbers(None if value.dtype in _NUMBERS else value.dtype, value.device)
    if value.shape[0] == rows:
        shape: tuple[int | None, ...] = tuple(value.shape[1:])
        return _Rows(value.dtype, value.device, (None, *shape[1:]) if masked else shape)
    return _Shared(digest(value))


def _row_list_layout(tensors: Sequence[torch.Tensor], exact: bool) -> Layout:
    shapes: tuple[tuple[int | None, ...], ...] = tuple(tuple(tensor.shape) for tensor in tensors)
    if not exact:
        # Text comes as (length, channels), and a model that takes it in a list takes any length.
        shapes = tuple(sorted({(None, *shape[1:]) if len(shape) == 2 else shape for shape in shapes}))
    return _RowList(tensors[0].dtype, tensors[0].device, shapes)


def digest(tensor: torch.Tensor) -> bytes:
    """Return a digest of a tensor's content, which is read from the device once for each version."""
    if tensor.is_inference():  # such a one does not tell when it is changed
        return content(tensor)
    version, digest = _digests.get(tensor, (None, b""))
    if version == tensor._version:
        return bytes(digest)
    fresh = content(tensor)
    _digests[tensor] = (tensor._version, fresh)
    return fresh


def lengths(value: Any, *, listed: bool) -> frozenset[tuple[int, ...]]:
    """Return the shapes of a call's tensors, each without its rows."""
    if isinstance(value, torch.Tensor):
        return frozenset([tuple(value.shape if listed else value.shape[1:])])
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return frozenset().union(*(lengths(item, listed=listed) for item in value))
    return frozenset()


def content(value: torch.Tensor) -> bytes:
    """Return a digest of a tensor: its type, its shape, every byte."""
    # Of one element, an expanded tensor counts as contiguous, but its bytes can't be viewed.
    plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    head = f"{plain.dtype} {tuple(plain.shape)} {value.device}".encode()
    return hashlib.sha256(head + bytes(plain.reshape(-1).view(torch.uint8).numpy())).digest()


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    if tensor.shape[1] == length:
        return tensor
    zeros = tensor.new_zeros((tensor.shape[0], length - tensor.shape[1], *tensor.shape[2:]))
    return torch.cat([tensor, zeros], dim=1)


# ---- outputs -----------------------------------------------------------------------------------------------

_DROPPED = "past_key_values"
"""What decoders used as text encoders give for a next token that nobody asks for; large, and not to be split."""


def map_tensors(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return an output with every tensor changed. Raises `NotJoinableError` for what is not known how to copy."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        fields = {key: map_tensors(item, change) for key, item in value.items() if key != _DROPPED}
        return fields if type(value) is dict else type(value)(**fields)
    if type(value) in (list, tuple):
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, _PLAIN):
        return value
    raise NotJoinableError("opaque output", type(value).__name__)


def split(output: Any, rows: Sequence[int], *, listed: bool) -> list[Any]:
    """Return each call's part of a joined output. Raises `NotJoinableError` if that has not one row for each."""
    total = sum(rows)
    parts = []
    begin = 0
    for count in rows:
        parts.append(_slice(output, begin, begin + count, total, listed))
        begin += count
    return parts


def _slice(output: Any, begin: int, end: int, total: int, listed: bool) -> Any:
    if isinstance(output, torch.Tensor):
        if output.ndim == 0 or output.shape[0] != total:
            raise NotJoinableError("output", f"has the shape {tuple(output.shape)} for {total} rows")
        return output[begin:end]
    if isinstance(output, Mapping):
        fields = {key: _slice(item, begin, end, total, listed) for key, item in output.items() if key != _DROPPED}
        return fields if type(output) is dict else type(output)(**fields)
    if type(output) in (list, tuple):
        if _is_row_list(output, total, listed):
            return output[begin:end]
        return type(output)(_slice(item, begin, end, total, listed) for item in output)
    if isinstance(output, _PLAIN):
        return output
    raise NotJoinableError("opaque output", type(output).__name__)


def merge(outputs: Sequence[Any], rows: Sequence[int], *, listed: bool) -> Any:
    """Return the output of one forward from those of its parts, which had so many rows each."""
    first = outputs[0]
    if len(outputs) == 1 or isinstance(first, _PLAIN):
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, Mapping):
        fields = {
            key: merge([output[key] for output in outputs], rows, listed=listed)
            for key in first
            if key != _DROPPED
        }
        return fields if type(first) is dict else type(first)(**fields)
    if all(_is_row_list(output, n, listed) for output, n in zip(outputs, rows, strict=True)):
        return type(first)(item for output in outputs for item in output)
    if type(first) in (list, tuple):
        return type(first)(merge(list(items), rows, listed=listed) for items in zip(*outputs, strict=True))
    raise NotJoinableError("opaque output", type(first).__name__)


def _is_row_list(output: Any, rows: int, listed: bool) -> bool:
    """Whether this is a list with one tensor for each row, and not one of tensors with all rows."""
    return (
        type(output) in (list, tuple)
        and len(output) == rows
        and all(isinstance(item, torch.Tensor) for item in output)
        and (listed or not _stacked(output, rows))
    )


def _stacked(tensors: Sequence[torch.Tensor], rows: int) -> bool:
    """Whether each of these tensors has all the rows."""
    return all(tensor.ndim > 0 and tensor.shape[0] == rows for tensor in tensors)


def close(together: Any, alone: Any) -> bool:
    """Whether two outputs are the same but for rounding, by the largest value of each tensor."""
    if isinstance(together, torch.Tensor):
        if not isinstance(alone, torch.Tensor) or together.shape != alone.shape:
            return False
        if not together.is_floating_point():
            return bool(torch.equal(together, alone))
        if not torch.equal(together.isnan(), alone.isnan()):  # in both it is the model's affair
            return False
        tolerance = 0.01 if together.dtype in (torch.float32, torch.float64) else 0.1
        together, alone = together.float().nan_to_num(), alone.float().nan_to_num()
        if not alone.numel():
            return True
        return bool((together - alone).abs().max() <= tolerance * alone.abs().max().clamp(min=1e-6))
    if isinstance(together, Mapping):
        return all(close(together[key], alone[key]) for key in together if key != _DROPPED)
    if isinstance(together, list | tuple):
        return len(together) == len(alone) and all(map(close, together, alone))
    return bool(together == alone)
