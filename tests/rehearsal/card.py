"""A pretended CUDA card: its tensors report `cuda:0`, and compute real numbers on the CPU.

It works one level above torch's dispatcher (`__torch_function__`), so no CUDA build is needed.

- An operation on tensors of two devices raises, as on a GPU; a CPU tensor of one value is allowed.
- `Card.synchronisations` counts by source line where the host would wait for the device (`.item()`, `.cpu()`).
- `CardMemory` counts the bytes of the storages that are alive. An operation beyond its limit raises
  `torch.OutOfMemoryError`.
- A copy to the host with `non_blocking` arrives only when the host waits for it; until then it holds wrong values.
- The host waits for a copy to the card, except for one with `non_blocking` from pinned memory, which must not
  change before the host has waited for the stream.

It shows nothing about kernels, speed or the rounding of a GPU.
"""

import contextlib
import gc
import threading
import time
import traceback
import warnings
import weakref
from collections import Counter
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
TOTAL_MEMORY = 24 << 30
NAME = "Pretended card"
SYNCHRONISING = frozenset(
    (
        *("item", "cpu", "numpy", "tolist", "__bool__", "__float__", "__int__", "__index__", "__array__"),
        *("nonzero", "argwhere", "unique", "masked_select", "equal", "allclose"),
    )
)
"""Functions for which the host waits for the device."""
MOVING = frozenset(
    ("to", "copy_", "cuda", "cpu", "__setitem__", "__getitem__", "index_put_", "new_tensor", "set_data")
)
"""Functions that accept tensors of two devices."""
TO_CARD = frozenset({"to", "cuda", "copy_", "tensor", "as_tensor"})
"""Functions that copy from the host to the card."""
IGNORED = (__file__, "host_copies.py")
"""Files that call torch for others."""
POISON = 0x5A
"""Byte with which a copy is filled until it has arrived."""


class CardMemory:
    """Bytes of the storages that are alive on the card: `used` now, at most `peak`. `limit` None: no limit.

    `fails_at`: called with the number of bytes of each new storage; True raises an error of missing memory.
    """

    def __init__(self):
        self.used = self.peak = 0
        self.limit = None
        self.fails_at = lambda size: False
        self._tensors = Counter()
        self._sizes = {}

    def reset_peak(self):
        self.peak = self.used

    def add(self, tensor):
        """Count the storage of a new tensor; raise `torch.OutOfMemoryError` if there is no room for it."""
        storage = tensor.as_subclass(torch.Tensor).untyped_storage()
        key = storage.data_ptr()
        if not key:
            return
        if not self._tensors[key]:
            size = storage.nbytes()
            if (self.limit is not None and self.used + size > self.limit) or self.fails_at(size):
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
            self._sizes[key] = size
            self.used += size
            self.peak = max(self.peak, self.used)
        self._tensors[key] += 1
        weakref.finalize(tensor, self._remove, key)

    def _remove(self, key):
        self._tensors[key] -= 1
        if not self._tensors[key]:
            self.used -= self._sizes.pop(key)


class Stream:
    """A stream: the copies that it has queued, oldest first."""

    def __init__(self, device=None, **_):
        self.queued = []

    def finish(self, count=None):
        """Carry out the oldest `count` copies, or all."""
        count = len(self.queued) if count is None else count
        for copy in self.queued[:count]:
            copy()
        del self.queued[:count]

    def synchronize(self):
        CARD.count("Stream.synchronize")
        self.finish()

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_stream(self, stream):
        pass

    def wait_event(self, event):
        pass


class Event:
    """An event. The first `query` returns False, as if the device had not reached it yet."""

    def __init__(self, enable_timing=False, **_):
        self._at = 0.0
        self._stream = None
        self._copies = 0
        self._asked = False

    def record(self, stream=None):
        self._at = time.perf_counter()
        self._stream = stream or CARD.stream
        self._copies = len(self._stream.queued)
        self._asked = False

    def synchronize(self):
        CARD.count("Event.synchronize")
        self._finish()

    def query(self):
        if self._asked:
            self._finish()
        done, self._asked = self._asked, True
        return done

    def elapsed_time(self, other):
        return (other._at - self._at) * 1000

    def _finish(self):
        self._stream.finish(self._copies)
        self._copies = 0


class Properties:
    total_memory, name, major, minor, multi_processor_count = TOTAL_MEMORY, NAME, 9, 0, 132


class Card:
    """The state of the one card."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.memory = CardMemory()
        self.warns = False
        """Whether a synchronisation warns, as torch does in its `set_sync_debug_mode`."""
        self.stream = self.default_stream = Stream()
        self.synchronisations = Counter()
        self.thread = threading.get_ident()
        self.pinned = WeakTensorKeyDictionary()

    def count(self, name):
        """Count a synchronisation of the device thread at the source line that causes it, outside of torch."""
        if threading.get_ident() != self.thread:
            return
        for frame in reversed(traceback.extract_stack(limit=40)):
            if not frame.filename.endswith(IGNORED) and "/torch/" not in frame.filename:
                place = f"{frame.filename.split('site-packages/')[-1]}:{frame.lineno} {frame.line}"
                self.synchronisations[f"{name} @ {place}"] += 1
                if self.warns:
                    text = "called a synchronizing CUDA operation"
                    warnings.warn_explicit(text, UserWarning, frame.filename, frame.lineno or 0)
                return

    def set_sync_debug_mode(self, mode):
        self.warns = mode not in (0, "default")

    def limit_memory(self, fraction, device=None):
        self.memory.limit = int(fraction * TOTAL_MEMORY)

    @contextlib.contextmanager
    def use_stream(self, stream):
        before, self.stream = self.stream, stream or self.stream
        try:
            yield
        finally:
            self.stream = before


CARD = Card()


class CardTensor(torch.Tensor):
    """A tensor on the card."""

    @staticmethod
    def __new__(cls, inner):
        card = torch.Tensor._make_subclass(cls, inner.detach() if inner.requires_grad else inner, False)
        CARD.memory.add(card)
        return card

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class CardMode(TorchFunctionMode):
    """Lets functions without tensor arguments (`torch.zeros(device="cuda")`) return tensors on the card.

    It belongs to a thread.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _plain(value):
    return value.as_subclass(torch.Tensor) if isinstance(value, CardTensor) else value


def _tensors(value):
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _map(function, value):
    """Return a copy of nested tuples, lists and dicts with `function` applied to their leaves.

    torch's own `tree_map` takes several times as long, and runs twice for each operation.
    """
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_map(function, each) for each in value])
    if kind is dict:
        return {key: _map(function, each) for key, each in value.items()}
    if isinstance(value, tuple) and kind is not torch.Size:
        mapped = [_map(function, each) for each in value]
        return kind(*mapped) if hasattr(kind, "_fields") else kind(mapped)
    return function(value)


def _is_cuda(value):
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.split(":")[0] == "cuda"
    )


def _on_cpu(value):
    return CPU if _is_cuda(value) else _plain(value)


def _run(func, args, kwargs):
    """Run a function of torch as on a GPU."""
    name = getattr(func, "__name__", "")
    if func is torch.device or name == "_parse_to":
        return func(*args, **kwargs)
    if name == "_has_compatible_shallow_copy_type":
        return False  # so that `module.to("cuda")` makes new parameters, which keep their class
    if name == "__get__":
        return _attribute(func, args)
    if name == "pin_memory":
        return _pinned(_plain(args[0]).clone())
    if name == "is_pinned":
        return args[0] in CARD.pinned
    tensors = [*_tensors(args), *_tensors(kwargs)]
    on_card = any(isinstance(each, CardTensor) for each in tensors)
    device = _requested_device(name, args, kwargs)
    if on_card:
        _check_devices(name, device, tensors)
        to_host = name == "cpu" or (name == "to" and device is not None and device.type == "cpu")
        if to_host and kwargs.get("non_blocking"):
            return _delayed_copy(args, kwargs)
        if name in SYNCHRONISING or to_host:
            CARD.count(name)
            CARD.stream.finish()
    if name in TO_CARD and (source := _source(name, device, args)) is not None:
        if kwargs.get("non_blocking") and source in CARD.pinned:
            CARD.stream.queued.append(_unchanged(source))
        else:
            CARD.count(f"{name} to the card")
            CARD.stream.finish()
        if name == "cuda":
            return CardTensor(args[0].clone())
        if name == "to":
            args = (args[0].clone(), *args[1:])  # with a storage of its own
    with torch._C.DisableTorchFunctionSubclass():
        output = func(*_map(_on_cpu, args), **_map(_on_cpu, kwargs))
    if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], CardTensor):
        return args[0]
    if not (device.type == "cuda" if device is not None else on_card):
        return output
    return _map(lambda each: CardTensor(each) if isinstance(each, torch.Tensor) else each, output)


def _attribute(func, args):
    """Return an attribute of a tensor."""
    name = getattr(getattr(func, "__self__", None), "__name__", "")
    on_card = isinstance(args[0], CardTensor)
    if on_card and name in ("device", "is_cuda", "is_cpu"):
        return {"device": CUDA, "is_cuda": True, "is_cpu": False}[name]
    with torch._C.DisableTorchFunctionSubclass():
        value = func(*_map(_plain, args))
    return CardTensor(value) if isinstance(value, torch.Tensor) and on_card else value


def _requested_device(name, args, kwargs):
    """Return the device on which the output is requested; None if the arguments decide."""
    device = kwargs.get("device")
    if isinstance(device, str | int):
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if name == "cpu":
        return CPU
    if name == "to":
        for each in args[1:]:
            if isinstance(each, torch.device) or (isinstance(each, str) and each.split(":")[0] in ("cuda", "cpu")):
                device = torch.device(each)
            elif isinstance(each, torch.Tensor):
                device = CUDA if isinstance(each, CardTensor) else CPU
    return device


def _check_devices(name, device, tensors):
    """Raise as on a GPU if a function gets tensors of two devices that it does not accept."""
    on_host = [each for each in tensors if not isinstance(each, CardTensor) and each.dim()]
    if on_host and device is None and name not in MOVING:
        shapes = [tuple(each.shape) for each in tensors]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            f" ({name} {shapes})"
        )


def _pinned(tensor):
    CARD.pinned[tensor] = True
    return tensor


def _source(name, device, args):
    """Return the tensor on the host that a function copies to the card, or the data; None if it copies none."""
    if name == "copy_":
        source = args[1] if isinstance(args[0], CardTensor) else None
        return source if isinstance(source, torch.Tensor) and source.dim() else None
    if name != "cuda" and (device is None or device.type != "cuda"):
        return None
    if isinstance(args[0], CardTensor | torch.nn.Parameter) or (isinstance(args[0], list) and not args[0]):
        return None
    return args[0]


def _unchanged(source):
    """Return a copy to the card that has been made already; it raises if the source has changed since."""
    version = source._version

    def check():
        assert source._version == version, "pinned memory has changed before its copy to the card was made"

    return check


def _delayed_copy(args, kwargs):
    """Return a copy on the host that arrives when the host waits for the stream."""
    with torch._C.DisableTorchFunctionSubclass():
        source = _plain(args[0]).clone()
        target = torch.empty_like(source)
        target.view(-1).view(torch.uint8).fill_(POISON)
    _pinned(target)
    CARD.stream.queued.append(lambda: target.copy_(source))
    return target


def _functions():
    """Return the functions of `torch.cuda` that the card replaces."""
    memory = CARD.memory
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "Event": Event,
        "Stream": Stream,
        "stream": CARD.use_stream,
        "current_stream": lambda device=None: CARD.stream,
        "default_stream": lambda device=None: CARD.default_stream,
        "synchronize": lambda device=None: CARD.stream.synchronize(),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: memory.reset_peak(),
        "get_device_name": lambda device=None: NAME,
        "is_bf16_supported": lambda *_: True,
        "get_device_properties": lambda device=None: Properties(),
        "mem_get_info": lambda device=None: (TOTAL_MEMORY - memory.used, TOTAL_MEMORY),
        "get_device_capability": lambda device=None: (9, 0),
        "memory_reserved": lambda device=None: memory.used,
        "memory_allocated": lambda device=None: memory.used,
        "max_memory_allocated": lambda device=None: memory.peak,
        "set_per_process_memory_fraction": CARD.limit_memory,
        "set_sync_debug_mode": CARD.set_sync_debug_mode,
    }


@contextlib.contextmanager
def pretended_card():
    """Replace `torch.cuda` by the card on this thread; yields the card's state."""
    CARD.reset()
    with mock.patch.multiple(torch.cuda, **_functions()), CardMode():
        yield CARD
    CARD.memory.limit = None


def move_to_card(pipeline):
    """Move the models of a pipeline to the card."""
    for part in pipeline.components.values():
        for module in part.modules() if isinstance(part, torch.nn.Module) else ():
            for table in (module._parameters, module._buffers):
                for key, value in table.items():
                    if value is not None:
                        table[key] = CardTensor(value.data)
    gc.collect()
