"""Which calls of a model can share a forward, and how their arguments are joined along the batch dimension.

Nothing here depends on a model. `describe` gives each argument of a call a `Layout` by these rules:

- n, the rows of a call, is dimension 0 of the first tensor of two or more dimensions, or the length of the first
  list of tensors.
- A tensor of one value is one value for each row (a timestep), except in a list. A tensor is concatenated along
  the dimension whose size was the number of rows in every call (see `batch_dimensions`). Lists with one tensor for
  each row are too. The items of dictionaries and other lists have a layout each.
- Any other tensor has no batch dimension (position ids): it is shared, and its content must be equal.
- Everything else must be equal.

Calls with equal layouts can share. Texts of different lengths are padded, but only where the model gets a mask for
them, or their lengths. A batch dimension is no proof that the model reads the tensor row by row; see
`row_evidence`. The first forward of each kind of calls is compared with a forward for each call, and later ones
from time to time (see `shared_forward`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol

import torch

from imagegen_worker.backends.diffusers.batch_dimensions import BatchDimensions, Path
from imagegen_worker.backends.diffusers.digests import cached_digest
from imagegen_worker.engines.continuous.calls import NotShareableError

PLAIN_TYPES = (type(None), bool, int, float, str, bytes, Enum, torch.dtype, torch.device, torch.Size)
_NUMBER_DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64)
"""Schedulers pass timesteps in any of these; models convert them to floats."""
_LENGTHS = "_lens"
"""Suffix of arguments with the number of tokens of each row."""


class Layout(Protocol):
    """The properties of one argument that calls must have in common. Hashable; compared by content."""

    @property
    def has_free_length(self) -> bool:
        """Whether it has a length that may differ between calls."""

    def join(self, parts: Sequence[Any], rows: Sequence[int]) -> Any:
        """Return the argument of the shared forward from those of the calls, which have `rows` rows each."""

    def narrow(self, joined: Any, begin: int, end: int) -> Any:
        """Return the joined argument for the rows from `begin` to before `end`."""


class _FirstOfAll:
    """Base of layouts whose argument is equal in all calls."""

    __slots__ = ()
    has_free_length: ClassVar[bool] = False

    def join(self, parts: Sequence[Any], rows: Sequence[int]) -> Any:
        return parts[0]

    def narrow(self, joined: Any, begin: int, end: int) -> Any:
        return joined


@dataclass(frozen=True, slots=True)
class _SharedTensor(_FirstOfAll):
    """A tensor without a batch dimension, represented by a digest of its content."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class _PlainValue(_FirstOfAll):
    """A value of a plain type."""

    kind: type
    value: Any


@dataclass(frozen=True, slots=True)
class _UnusedGenerator(_FirstOfAll):
    """A random generator. Models rarely use the one that they accept; the forward checks that it is unused."""


@dataclass(frozen=True, slots=True)
class _BatchedTensor:
    """A tensor with a batch dimension. `shape`: the other dimensions; None for one that is padded with zeros."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int | None, ...]
    dim: int = 0
    """The batch dimension; 0 with a free length."""

    @property
    def has_free_length(self) -> bool:
        return None in self.shape

    def join(self, parts: Sequence[torch.Tensor], rows: Sequence[int]) -> torch.Tensor:
        if None in self.shape:
            longest = max(part.shape[1] for part in parts)
            parts = [_padded(part, longest) for part in parts]
        return torch.cat(list(parts), dim=self.dim)

    def narrow(self, joined: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        return joined.narrow(self.dim, begin, end - begin)


@dataclass(frozen=True, slots=True)
class _RowValues:
    """One number for each row, given once for a call or n times. `dtype` None: any of `_NUMBER_DTYPES`."""

    dtype: torch.dtype | None
    device: torch.device
    has_free_length: ClassVar[bool] = False

    def join(self, parts: Sequence[torch.Tensor], rows: Sequence[int]) -> torch.Tensor:
        widest = parts[0].dtype
        for part in parts:
            widest = torch.promote_types(widest, part.dtype)
        return torch.cat([part.to(widest).reshape(-1).expand(n) for part, n in zip(parts, rows, strict=True)])

    def narrow(self, joined: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        return joined[begin:end]


@dataclass(frozen=True, slots=True)
class _TensorList:
    """A list with one tensor for each row. `shapes`: those that all calls must have; None for a free length."""

    dtype: torch.dtype
    device: torch.device
    shapes: tuple[tuple[int | None, ...], ...]

    @property
    def has_free_length(self) -> bool:
        return any(None in shape for shape in self.shapes)

    def join(self, parts: Sequence[Sequence[torch.Tensor]], rows: Sequence[int]) -> list[torch.Tensor]:
        return [tensor for part in parts for tensor in part]

    def narrow(self, joined: list[torch.Tensor], begin: int, end: int) -> list[torch.Tensor]:
        return joined[begin:end]


@dataclass(frozen=True, slots=True)
class _Container:
    """A dictionary, list or tuple with a layout for each item."""

    kind: type
    keys: tuple[Any, ...]
    items: tuple[Layout, ...]

    @property
    def has_free_length(self) -> bool:
        return any(item.has_free_length for item in self.items)

    def join(self, parts: Sequence[Any], rows: Sequence[int]) -> Any:
        values = [
            item.join([part[key] for part in parts], rows) for key, item in zip(self.keys, self.items, strict=True)
        ]
        return self._with_values(values)

    def narrow(self, joined: Any, begin: int, end: int) -> Any:
        values = [item.narrow(joined[key], begin, end) for key, item in zip(self.keys, self.items, strict=True)]
        return self._with_values(values)

    def _with_values(self, values: list[Any]) -> Any:
        if issubclass(self.kind, dict):
            return dict(zip(self.keys, values, strict=True))
        return tuple(values) if issubclass(self.kind, tuple) else values


@dataclass(frozen=True, slots=True)
class Description:
    """The rows of a call, and the layout of its arguments, which must be equal for calls to share a forward.

    `listed`: the model takes its rows as a list of tensors, and returns them as one.
    """

    rows: int
    listed: bool
    layout: Layout


@dataclass(frozen=True, slots=True)
class RowArgument:
    """An argument that is joined row by row.

    `path`: the keys to it; `ndim`: its dimensions, 0 for a list; `dim`: its batch dimension.
    """

    path: Path
    ndim: int
    dim: int = 0


def row_arguments(layout: Layout, path: tuple[Any, ...] = ()) -> Iterator[RowArgument]:
    """Yield the arguments with one part per row, which shared forwards concatenate."""
    match layout:
        case _Container():
            for key, item in zip(layout.keys, layout.items, strict=True):
                yield from row_arguments(item, (*path, key))
        case _BatchedTensor():
            yield RowArgument(path, len(layout.shape) + 1, layout.dim)
        case _RowValues():
            yield RowArgument(path, 1)
        case _TensorList():
            yield RowArgument(path, 0)


def differing_names(one: Layout, other: Layout) -> frozenset[str]:
    """Return the names of the arguments that only one of two calls has, or that have other layouts."""
    if not (isinstance(one, _Container) and isinstance(other, _Container)):
        return frozenset()
    by_name = [dict(zip(layout.keys, layout.items, strict=True)) for layout in (one, other)]
    return frozenset(name for name in {*one.keys, *other.keys} if by_name[0].get(name) != by_name[1].get(name))


def count_rows(arguments: Iterable[Any]) -> int:
    """Return the rows of a call; 1 if no argument has a batch dimension."""
    return next((counted[0] for value in arguments if (counted := _count_rows(value)) is not None), 1)


def describe(
    arguments: Mapping[str, Any], dimensions: BatchDimensions | None = None, *, equal_lengths: bool = False
) -> Description:
    """Return the description of a call with these arguments by name. `dimensions`: the batch dimensions known.

    With `equal_lengths`, no length may differ, so that a shared forward differs in the batch dimension only.
    Raises `NotShareableError` if the call can't share a forward with any other.
    """
    counted = _count_rows(arguments)
    if counted is None:
        raise NotShareableError("no rows", "no argument is a tensor with a batch dimension")
    rows, listed = counted
    masked = set() if equal_lengths else _masked_arguments(arguments, rows)
    context = _Context(rows, listed, equal_lengths, dimensions or BatchDimensions(), _first_batched(arguments))
    items = tuple(_layout(value, context, name in masked, (name,)) for name, value in arguments.items())
    return Description(rows, listed, _Container(dict, tuple(arguments), items))


@dataclass(frozen=True, slots=True)
class _Context:
    """Properties of a whole call. `first`: the name of the argument that determines the number of rows."""

    rows: int
    listed: bool
    equal_lengths: bool
    dimensions: BatchDimensions
    first: str


def _first_batched(arguments: Mapping[str, Any]) -> str:
    return next((name for name, value in arguments.items() if _count_rows(value) is not None), "")


def _count_rows(value: Any) -> tuple[int, bool] | None:
    """Return the number of rows of an argument and whether they are a list; None if it can't be determined."""
    if isinstance(value, torch.Tensor):
        return (value.shape[0], False) if value.ndim >= 2 else None
    if isinstance(value, Mapping):
        value = list(value.values())
    elif isinstance(value, list | tuple) and value and all(isinstance(item, torch.Tensor) for item in value):
        return len(value), True
    if isinstance(value, list | tuple):
        return next((counted for item in value if (counted := _count_rows(item)) is not None), None)
    return None


def _masked_arguments(arguments: Mapping[str, Any], rows: int) -> set[str]:
    """Return the names of text masks and of the texts whose lengths may differ between calls.

    A text may differ in length if the model gets a mask for it, or the length of each row (`text_bth` with
    `text_lens`).
    """
    found: set[str] = set()
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            continue
        if name.endswith("mask") and value.ndim == 2 and len(value) == rows:
            for text_name in (name.removesuffix("_mask"), "encoder_hidden_states"):
                if _is_text(arguments.get(text_name), rows, value.shape[1]):
                    found |= {name, text_name}
                    break
        elif name.endswith(_LENGTHS) and value.shape == (rows,) and not value.is_floating_point():
            prefix = name.removesuffix(_LENGTHS) + "_"
            found |= {text for text, each in arguments.items() if text.startswith(prefix) and _is_text(each, rows)}
    return found


def _is_text(value: Any, rows: int, length: int | None = None) -> bool:
    """Return whether this has the shape (rows, length, channels) of texts."""
    return (
        isinstance(value, torch.Tensor)
        and value.ndim == 3
        and value.shape[0] == rows
        and length in (None, value.shape[1])
    )


def _layout(value: Any, call: _Context, masked: bool, path: Path) -> Layout:
    if isinstance(value, torch.Tensor):
        return _tensor_layout(value, call, masked, path)
    if isinstance(value, torch.Generator):
        return _UnusedGenerator()
    if isinstance(value, Mapping):
        items = tuple(_layout(item, call, False, (*path, key)) for key, item in value.items())
        return _Container(dict, tuple(value), items)
    if isinstance(value, list | tuple):
        if is_tensor_list(value, call.rows, call.listed) and call.dimensions.may_be_list(path):
            if not call.listed and not call.dimensions.is_certain(path, 0):
                raise _ambiguous(path)
            return _tensor_list_layout(value, call.equal_lengths)
        items = tuple(_layout(item, call, False, (*path, at)) for at, item in enumerate(value))
        return _Container(type(value), tuple(range(len(value))), items)
    if isinstance(value, PLAIN_TYPES):
        return _PlainValue(type(value), value)
    raise NotShareableError(
        "opaque argument", f"the argument {_show(path)} is a {type(value).__name__}, which can't be joined"
    )


def _tensor_layout(value: torch.Tensor, call: _Context, masked: bool, path: Path) -> Layout:
    numbers = None if value.dtype in _NUMBER_DTYPES else value.dtype
    in_list = any(isinstance(key, int) for key in path)  # positions along several axes, but no timesteps
    if value.numel() == 1 and value.ndim <= 1:
        return _SharedTensor(cached_digest(value)) if in_list and value.ndim else _RowValues(numbers, value.device)
    dims = call.dimensions.of_tensor(path, value, call.rows)
    if value.ndim == 1:
        if dims and in_list and not call.dimensions.is_certain(path, 1):
            raise _ambiguous(path)
        return _RowValues(numbers, value.device) if dims else _SharedTensor(cached_digest(value))
    if masked or path == (call.first,) or call.rows == 1:  # with one row, any dimension of one item matches
        dims &= {0}
    if len(dims) > 1:
        raise _ambiguous(path)
    if not dims:
        return _SharedTensor(cached_digest(value))
    (dim,) = dims
    if dim > 0 and not call.dimensions.is_certain(path, value.ndim):
        return _SharedTensor(cached_digest(value))  # a size that happens to be the number of rows
    shape: tuple[int | None, ...] = (*value.shape[:dim], *value.shape[dim + 1 :])
    return _BatchedTensor(value.dtype, value.device, (None, *shape[1:]) if masked else shape, dim)


def _ambiguous(path: Path) -> NotShareableError:
    """Return the error for an argument whose batch dimension is ambiguous in all calls so far."""
    return NotShareableError("unknown batch dimension", f"of the argument {_show(path)}")


def _show(path: Path) -> str:
    return str(path[0]) + "".join(f".{key}" if isinstance(key, str) else f"[{key}]" for key in path[1:])


def _tensor_list_layout(tensors: Sequence[torch.Tensor], equal_lengths: bool) -> Layout:
    shapes: tuple[tuple[int | None, ...], ...] = tuple(tuple(tensor.shape) for tensor in tensors)
    if not equal_lengths:
        # Text has the shape (length, channels), and a model that takes it in a list takes any length.
        shapes = tuple(sorted({(None, *shape[1:]) if len(shape) == 2 else shape for shape in shapes}))
    return _TensorList(tensors[0].dtype, tensors[0].device, shapes)


def is_tensor_list(value: Any, rows: int, listed: bool) -> bool:
    """Return whether this is a list with one tensor for each row, not a list of tensors with all rows."""
    return (
        isinstance(value, list | tuple)
        and len(value) == rows
        and all(isinstance(item, torch.Tensor) for item in value)
        and (listed or not all(tensor.ndim > 0 and tensor.shape[0] == rows for tensor in value))
    )


def free_lengths(layout: Layout, value: Any) -> Iterator[tuple[int, ...]]:
    """Yield the length of each argument whose length may differ between calls, or the lengths of its list."""
    match layout:
        case _Container():
            for key, item in zip(layout.keys, layout.items, strict=True):
                yield from free_lengths(item, value[key])
        case _BatchedTensor() if layout.has_free_length:
            yield (value.shape[1],)
        case _TensorList() if layout.has_free_length:
            yield tuple(tensor.shape[0] for tensor in value if tensor.ndim == 2)


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Return a tensor of shape (rows, length, ...), padded with zeros."""
    if tensor.shape[1] == length:
        return tensor
    zeros = tensor.new_zeros((tensor.shape[0], length - tensor.shape[1], *tensor.shape[2:]))
    return torch.cat([tensor, zeros], dim=1)
