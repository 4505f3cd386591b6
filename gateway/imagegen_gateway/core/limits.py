"""What a key may ask for, and how often."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from imagegen_protocol.limits import MAX_SIDE_PIXELS, MAX_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one key; None is no bound. Sizes in pixels."""

    requests_per_minute: float | None = None
    max_in_flight: int | None = None
    """Requests and jobs that have not ended."""
    max_width: int | None = None
    max_height: int | None = None
    max_steps: int | None = None
    models: tuple[str, ...] | None = None
    """Those that may be named; the first stands for none named. None: all."""
    priority: int = 0
    """The priority of its requests, which may ask for less."""

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "Limits":
        """Return limits; what is not said is not bounded."""
        known = {item.name: given[item.name] for item in fields(cls) if item.name in given}
        if known.get("models") is not None:
            known["models"] = tuple(known["models"])
        return cls(**known)


UNLIMITED = Limits(max_width=MAX_SIDE_PIXELS, max_height=MAX_SIDE_PIXELS, max_steps=MAX_STEPS, priority=100)
"""Where there are no keys: what the protocol allows."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a key may not have what it asks for; `field` is the request's."""

    field: str
    message: str


def refusal(limits: Limits, asked: Mapping[str, Any]) -> Refusal | None:
    """Return what goes beyond the limits in the options of a request (`RequestOptions`); None: nothing."""
    model = asked.get("model")
    if limits.models is not None and model is not None and model not in limits.models:
        return Refusal("model", f"model: this key may use {' or '.join(limits.models)}, got {model}")
    steps = asked.get("num_inference_steps")
    if steps is not None and limits.max_steps is not None and steps > limits.max_steps:
        message = f"num_inference_steps: this key may ask for {limits.max_steps} at most, got {steps}"
        return Refusal("num_inference_steps", message)
    for name, most in (("width", limits.max_width), ("height", limits.max_height)):
        if most is not None and (side := asked.get(name)) is not None and side > most:
            return Refusal("size", f"size: this key may ask for a {name} of {most} at most, got {side}")
    if (priority := asked.get("priority")) is not None and priority > limits.priority:
        return Refusal("priority", f"priority: this key may ask for {limits.priority} at most, got {priority}")
    return None


def with_defaults(limits: Limits, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the key's own model and priority where the request names none."""
    own: dict[str, Any] = {"priority": min(limits.priority, 0) if limits is UNLIMITED else limits.priority}
    if limits.models is not None:
        own["model"] = limits.models[0]
    return {**own, **asked}


@dataclass(slots=True)
class TokenBucket:
    """A rate with a burst of one minute's worth; times in seconds, of any clock that only goes forward."""

    per_minute: float
    _tokens: float = field(init=False)
    _at: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._tokens = max(1.0, self.per_minute)

    def take(self, now: float) -> float:
        """Take one and return 0, or take none and return the seconds until there is one."""
        per_second = self.per_minute / 60
        if self._at is not None:
            self._tokens = min(max(1.0, self.per_minute), self._tokens + (now - self._at) * per_second)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / per_second
