"""Copies between host and device that the host does not wait for, in the code of pipelines between forwards.

A plain copy to the device, and every read from it, makes the host wait until the device has done all of its
queued work. While `HostCopies` is active, tensors are copied to the device through pinned memory, and the host
keeps copies of small ones: token ids, masks, timesteps, position ids. Reading such a tensor, or one that was
computed from it by an operation that gives the same values on every device, then takes no wait.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

MAX_COPIED_BYTES = 64 * 1024
"""Largest tensor of which the host keeps a copy."""
_READS = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "nonzero"})
"""Functions for which the host waits for the device."""
_MOVE = frozenset(
    ("__getitem__", "unbind", "narrow", "select", "expand", "expand_as", "reshape", "view", "view_as", "flatten")
).union(
    ("squeeze", "unsqueeze", "repeat", "cat", "concat", "concatenate", "stack", "chunk", "split", "clone"),
    ("contiguous", "detach", "movedim", "permute", "transpose", "flip"),
)
_COMPUTE = frozenset(
    ("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "to", "float", "double", "long", "int")
).union(
    ("all", "any", "bool", "bitwise_not", "__invert__", "logical_not", "logical_and", "logical_or"),
    ("neg", "__neg__", "rsub"),
)
_BINARY = frozenset(
    form
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "and", "or")
    for form in (name, f"__{name}__", f"__r{name}__")
)
_FUSED = {"out", "alpha"}
"""Arguments with which a function is not followed."""
_FOLLOWED = _MOVE | _COMPUTE | _BINARY
"""Functions that give the same bits on every device: copies, comparisons, and single arithmetic operations.

Division is none: CUDA multiplies by the reciprocal of a number.
"""

_copies: Any = WeakTensorKeyDictionary()
"""(version of the tensor, its content on the host) by tensor on the device."""


def host_copy(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the content of a tensor on the device if the host has it; the caller must not change it."""
    if tensor not in _copies or tensor.is_inference():  # inference tensors have no version
        return None
    version, host = _copies[tensor]
    return host if version == tensor._version else None


def read(tensor: torch.Tensor) -> torch.Tensor:
    """Return the content of a tensor on the host; waits for the device only if the host has no copy."""
    host = host_copy(tensor)
    return tensor.detach().cpu() if host is None else host


class HostCopies(TorchFunctionMode):
    """Lets the code in its `with` block copy without waiting; see the module. It belongs to a thread."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name in ("to", "cuda"):
            return _move(func, args, kwargs)
        if name in ("tensor", "as_tensor") and _is_cuda(kwargs.get("device")):
            return _to_device(func(*args, **{**kwargs, "device": "cpu"}), kwargs["device"])
        if name in _READS and (host := host_copy(args[0])) is not None:
            found = func(host.clone(), *args[1:], **kwargs)
            return _to_device(found, args[0].device) if name == "nonzero" else found
        output = func(*args, **kwargs)
        if name in _FOLLOWED:
            _follow(func, args, kwargs, output)
        return output

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the mode, and those entered after it, for the time of the `with` block."""
        taken: list[Any] = []
        while self not in taken:
            taken.append(torch.overrides._pop_mode())
        try:
            yield
        finally:
            for mode in reversed(taken):
                torch.overrides._push_mode(mode)


def _move(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run `Tensor.to` or `Tensor.cuda`."""
    source, given = args[0], [*args[1:], *kwargs.values()]
    if func.__name__ == "cuda":
        given = [*given, torch.device("cuda")]
    device = next(
        (each.device if isinstance(each, torch.Tensor) else each for each in given if _names(each)), None
    )
    if type(source) is torch.Tensor and source.device.type == "cpu" and _is_cuda(device):
        if any(each is True for each in given) or not source.numel() or source.layout is not torch.strided:
            return func(*args, **kwargs)
        dtypes = [each.dtype if isinstance(each, torch.Tensor) else each for each in given]
        dtype = next((each for each in dtypes if isinstance(each, torch.dtype)), source.dtype)
        return _to_device(source.detach().to(dtype), device)
    if device is not None and not _is_cuda(device) and (host := host_copy(source)) is not None:
        return func(host.clone(), *args[1:], **kwargs)
    output = func(*args, **kwargs)
    if device is None or _is_cuda(device):
        _follow(func, args, kwargs, output)
    return output


def _to_device(host: torch.Tensor, device: Any) -> torch.Tensor:
    """Return a tensor on the device, whose copy is queued."""
    moved = host.pin_memory().to(device, non_blocking=True)
    if host.nbytes <= MAX_COPIED_BYTES:
        _remember(moved, host.clone())
    return moved


def _follow(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    """Compute on the host what a function has computed on the device, if the host has its arguments."""
    made = output if isinstance(output, tuple | list) else (output,)
    if not all(isinstance(each, torch.Tensor) and each.is_cuda for each in made):
        return
    if sum(each.numel() * each.element_size() for each in made) > MAX_COPIED_BYTES or _FUSED & kwargs.keys():
        return
    try:
        hosts = func(*map(_on_host, args), **{name: _on_host(value) for name, value in kwargs.items()})
    except _Unknown:
        return
    for each, host in zip(made, hosts if isinstance(hosts, tuple | list) else (hosts,), strict=True):
        _remember(each, host)


class _Unknown(Exception):
    """The host has no copy of a tensor."""


def _on_host(value: Any) -> Any:
    """Return an argument for the same function on the host. Raises `_Unknown`."""
    if isinstance(value, torch.Tensor):
        host = host_copy(value) if value.is_cuda else value
        if host is None:
            raise _Unknown
        return host
    if type(value) in (list, tuple):
        return type(value)(map(_on_host, value))
    named = isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda"))
    return torch.device("cpu") if named else value


def _remember(tensor: torch.Tensor, host: torch.Tensor) -> None:
    if not tensor.is_inference():
        _copies[tensor] = (tensor._version, host)


def _names(value: Any) -> bool:
    """Return whether an argument of `to` names a device, or is a tensor whose device is meant."""
    return isinstance(value, torch.device | str | torch.Tensor) or type(value) is int


def _is_cuda(device: Any) -> bool:
    if type(device) is int:
        return True
    return device is not None and not isinstance(device, torch.Tensor) and torch.device(device).type == "cuda"
