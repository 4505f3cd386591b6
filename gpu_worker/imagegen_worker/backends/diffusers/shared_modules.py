"""Changes that pipeline calls make to the models that all calls share, outside of the models' forwards.

Some calls replace attention processors for their duration (perturbed attention), or add hooks or change buffers
between forwards (guiders that skip layers). Such changes would affect the other calls. The first call of each kind
is therefore watched: the attributes of the models are compared before each forward. A change is undone when the
call ends, and from then on the pipelines with these models run one call at a time.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch

from imagegen_worker.engines.continuous.calls import Call, Condition, Task, wait_for_forward, wait_until

MAX_KINDS = 256
"""Maximum number of kinds of calls that are watched."""
_MAX_COPIED_BYTES = 1 << 20
"""Largest buffer of which a copy is kept, to restore it."""
_IGNORED = frozenset({"_parameters", "training"})
_REGISTRY = "_diffusers_hook"
"""Attribute for diffusers' hooks, which pipelines also create when there are none."""

_log = logging.getLogger(__name__)

_COLLECTIONS = (dict, list, tuple, set)
_MISSING = object()
_HOOKS = "_hooks"
"""Part of the names of the attributes of torch that have hooks."""

_Key = tuple[int, str]
"""The id of a module, and the name of an attribute."""


@dataclass(slots=True)
class _Saved:
    """The value of an attribute: the object, and a copy of its items if it is a collection or a buffer."""

    module: torch.nn.Module
    name: str
    value: Any
    items: Any

    def differs(self, other: "_Saved") -> bool:
        if self.items is None or other.items is None:
            return self.items is not other.items or not _is_same(self.value, other.value)
        return len(self.items) != len(other.items) or any(
            key not in other.items or not _is_same(item, other.items[key]) for key, item in self.items.items()
        )

    def restore(self) -> None:
        """Restore this value of the module's attribute."""
        if self.items is not None and isinstance(self.value, dict):
            if self.name == "_modules" and any(map(_is_adapter, self.value.values())):
                return  # adapters were loaded meanwhile, which replaces layers
            self.value.clear()
            self.value.update({key: _restored(item) for key, item in self.items.items()})
        elif self.items is not None and isinstance(self.value, list):
            self.value[:] = self.items.values()
        elif self.items is not None and isinstance(self.value, set):
            self.value.clear()
            self.value.update(self.items.values())
        vars(self.module)[self.name] = self.value


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A buffer: the tensor, its version, and a copy of its content if it is small."""

    tensor: torch.Tensor
    version: int
    content: torch.Tensor | None


def _restored(item: Any) -> Any:
    if not isinstance(item, _Buffer):
        return item
    if item.content is not None and not item.tensor.is_inference() and item.tensor._version != item.version:
        item.tensor.copy_(item.content)
    return item.tensor


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, _Buffer) and isinstance(other, _Buffer):
        return one.tensor is other.tensor and one.version == other.version
    if isinstance(one, bool | int | float | str):
        return type(one) is type(other) and bool(one == other)
    return one is other


@dataclass(slots=True)
class _ModuleState:
    """The attributes of one module, without those of its submodules. Most collections are empty and not copied."""

    module: torch.nn.Module
    values: dict[str, Any]
    items: dict[str, dict[Any, Any]]
    """Copies of the items of each collection that is not empty."""

    @classmethod
    def of(cls, module: torch.nn.Module) -> Self:
        """Copy the attributes of a module."""
        values = {name: value for name, value in vars(module).items() if name not in _IGNORED}
        items = {
            name: _items(name, value)
            for name, value in values.items()
            if isinstance(value, _COLLECTIONS) and value and _is_compared_by_items(name, value)
        }
        if (registry := values.get(_REGISTRY)) is not None:
            if hooks := getattr(registry, "hooks", None):
                items[_REGISTRY] = dict(hooks)
            else:
                del values[_REGISTRY]
        return cls(module, values, items)

    def with_hooks_of(self, other: "_ModuleState | None") -> Self:
        """Return this state with the hooks of another one of the same module; without hooks if there is none."""
        values, items = ({}, {}) if other is None else (other.values, other.items)
        hooks = {name: value for name, value in values.items() if _HOOKS in name}
        hook_items = {name: value for name, value in items.items() if _HOOKS in name}
        own = {name: value for name, value in self.values.items() if _HOOKS not in name}
        own_items = {name: value for name, value in self.items.items() if _HOOKS not in name}
        return type(self)(self.module, own | hooks, own_items | hook_items)

    def saved(self, name: str) -> _Saved | None:
        """Return the value of an attribute; None if the module did not have it."""
        if name not in self.values:
            return None
        value = self.values[name]
        empty: dict[Any, Any] | None = {} if _is_compared_by_items(name, value) else None
        return _Saved(self.module, name, value, self.items.get(name, empty))

    def changes(self, now: "_ModuleState") -> Iterator[tuple[str, _Saved | None]]:
        """Yield the attributes that differ, with their values in this state; None: the attribute is new."""
        for name, value in self.values.items():
            if now.values.get(name, _MISSING) is value and name not in self.items and name not in now.items:
                continue  # most attributes
            saved, other = self.saved(name), now.saved(name)
            if saved is not None and (other is None or saved.differs(other)):
                yield name, saved
        for name in now.values.keys() - self.values.keys():
            yield name, None


def _is_compared_by_items(name: str, value: Any) -> bool:
    return (
        type(value) in (dict, list, tuple, set)
        or name in ("_buffers", "_modules", _REGISTRY)
        or (isinstance(value, dict) and name.endswith("_hooks"))
    )


def _items(name: str, value: Any) -> dict[Any, Any]:
    """Return a copy of the items of a collection."""
    if name == "_buffers":
        return {key: _buffer(tensor) for key, tensor in value.items()}
    if name == "_modules":
        return {key: part for key, part in value.items() if not _is_adapter(part)}
    return dict(value) if isinstance(value, dict) else dict(enumerate(value))


def _buffer(tensor: torch.Tensor | None) -> Any:
    if tensor is None:
        return None
    version = -1 if tensor.is_inference() else tensor._version
    return _Buffer(tensor, version, tensor.clone() if tensor.nbytes <= _MAX_COPIED_BYTES else None)


def count_hooks(module: torch.nn.Module) -> int:
    """Return the number of hooks on the forwards of a module and its submodules."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def _is_adapter(module: Any) -> bool:
    """Return whether this is a layer of peft, which changes with the adapters of each forward."""
    return _is_adapter_type(type(module))  # type: ignore[arg-type]  # mypy takes no class for hashable


@lru_cache(maxsize=1024)
def _is_adapter_type(kind: type) -> bool:
    return any(each.__module__.startswith("peft.") for each in kind.__mro__)


_States = dict[int, _ModuleState]
"""States of modules by their id."""


def _snapshot(modules: Iterable[torch.nn.Module]) -> _States:
    """Return the states of these modules and their submodules, without the layers of adapters."""
    found: _States = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        if id(module) in found or _is_adapter(module):
            continue
        found[id(module)] = _ModuleState.of(module)
        pending += [part for part in module._modules.values() if part is not None]
    return found


def _changes(before: _States, now: _States) -> dict[_Key, _Saved | None]:
    """Return the attributes that differ, with their values before; None: the attribute is new."""
    gone = _ModuleState(torch.nn.Module(), {}, {})
    return {
        (key, name): saved for key, state in before.items() for name, saved in state.changes(now.get(key, gone))
    }


def _saved(states: _States, key: _Key) -> _Saved | None:
    """Return the value of an attribute in a snapshot, if it has one."""
    state = states.get(key[0])
    return None if state is None else state.saved(key[1])


def _undo(changed: Mapping[_Key, _Saved | None], now: Mapping[_Key, _Saved | None]) -> None:
    """Restore the previous values of attributes; remove attributes that are new."""
    for key, saved in changed.items():
        if saved is not None:
            saved.restore()
        elif (added := now.get(key)) is not None:
            vars(added.module).pop(key[1], None)


@contextmanager
def restored_after_errors(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Restore the attributes of modules if the `with` block raises: a call may have ended in the middle."""
    modules = list(modules)
    before = _snapshot(modules)
    try:
        yield
    except BaseException:
        now = _snapshot(modules)
        changed = _changes(before, now)
        _undo(changed, {key: _saved(now, key) for key in changed})
        raise


@dataclass(slots=True)
class _Watch:
    """A watched call. `state`: the attributes after the last forward; `changed`: what the call changed itself.

    `passed`: it has reached its first denoising step. `alone`: no other call of these models runs meanwhile.
    """

    kind: Hashable
    state: _States
    revision: int
    alone: bool
    passed: bool = False
    changed: dict[_Key, _Saved | None] = field(default_factory=dict)


class ModuleGuard:
    """Watches the calls of pipelines with the same models. `revision`: changes when adapters are loaded.

    `serial`: a call was seen to change the models, so one call runs at a time.
    """

    def __init__(self, revision: Callable[[], int]) -> None:
        self.serial = False
        self._revision = revision
        self._modules: list[torch.nn.Module] = []
        self._kinds: set[Hashable] = set()
        # Weak: a cancelled task that catches every exception ends when it is collected.
        self._watches: WeakKeyDictionary[Task, _Watch] = WeakKeyDictionary()
        self._known: dict[_Key, _Saved] = {}
        """Attributes that calls were seen to change, with their values outside of calls."""

    def add(self, module: torch.nn.Module) -> None:
        """Add a model whose forwards are reported to `forward_ended`."""
        self._modules.append(module)

    @contextmanager
    def call(self, task: Task | None, kind: Hashable) -> Iterator[None]:
        """Run a pipeline call of a kind in the `with` block, watched or alone if necessary."""
        if task is None or (not self.serial and self._is_known(kind)):
            yield
            return
        if not self._may_start(kind):
            wait_until(lambda: self._may_start(kind))
        if self.serial:
            wait_for_forward(Call(_Access(), (), {}, task))
        if not self._is_known(kind):
            self._watches[task] = _Watch(kind, _snapshot(self._modules), self._revision(), self.serial)
        try:
            yield
        finally:
            self._end(task)

    def _is_known(self, kind: Hashable) -> bool:
        """Return whether a call of this kind was watched up to its first step, or `MAX_KINDS` is reached."""
        return kind in self._kinds or len(self._kinds) >= MAX_KINDS

    def _may_start(self, kind: Hashable) -> bool:
        """Return whether a call may start: no other call of an unknown kind has yet to reach its first step."""
        return self._is_known(kind) or all(watch.passed for watch in self._watches.values())

    def before_forward(self, task: Task, *, is_denoiser: bool) -> None:
        """Check for changes to the models before a forward of a task whose call is watched."""
        watch = self._watches.get(task)
        if watch is None:
            return
        self._look(watch, task)
        if is_denoiser:
            watch.passed = True
            self._kinds.add(watch.kind)

    def forward_ended(self, module: torch.nn.Module, *, hooked: bool = False) -> None:
        """Record that a forward ended: changes made within it do not count as changes by the call.

        `hooked`: hooks that are in place now are not recorded, because the call removes them before the next
        forward.
        """
        if self._watches:
            state = _snapshot([module])
            for watch in self._watches.values():
                for key, each in state.items():
                    watch.state[key] = each.with_hooks_of(watch.state.get(key)) if hooked else each

    def _look(self, watch: _Watch, task: Task) -> None:
        """Check for changes since the last forward; if there are any, the task waits until no other call runs."""
        now = _snapshot(self._modules)
        if watch.revision != self._revision():  # adapters were loaded meanwhile
            watch.revision = self._revision()
            watch.state = now
            return
        changed = _changes(watch.state, now)
        watch.state = now
        if not changed:
            return
        for key, saved in changed.items():
            watch.changed.setdefault(key, saved)
        if not self.serial:
            self.serial = True
            names = ",".join(sorted({key[1] for key in changed}))
            _log.warning("a call changes shared models, so requests run one at a time attributes=%s", names)
        if not watch.alone:
            own = {key: _saved(now, key) for key in changed}
            _undo(changed, own)
            wait_for_forward(Call(_Access(), (), {}, task))
            watch.alone = True
            _undo(own, changed)  # the call's changes take effect again

    def _end(self, task: Task) -> None:
        """Undo what a call changed."""
        watch = self._watches.pop(task, None)
        if watch is not None:
            now = _snapshot(self._modules)
            if watch.revision == self._revision():
                for key, saved in _changes(watch.state, now).items():
                    watch.changed.setdefault(key, saved)
            self._kinds.add(watch.kind)
            _undo(watch.changed, {key: _saved(now, key) for key in watch.changed})
            self.serial |= bool(watch.changed)
            self._known |= {key: saved for key, saved in watch.changed.items() if saved is not None}
        for saved in self._known.values() if self.serial else ():
            saved.restore()


class _Access(Condition):
    """A stage without a model: a call waits until its task may run the pipeline."""

    name = "access to the models"
    exclusive = True
