"""The limits of an API key: on the parameters of its requests, and on their rate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.limits import MAX_SIDE_PIXELS, MAX_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one key; None means unlimited. Sizes in pixels."""

    requests_per_minute: float | None = None
    max_in_flight: int | None = None
    """Maximum number of unfinished requests and jobs."""
    max_width: int | None = None
    max_height: int | None = None
    max_steps: int | None = None
    models: tuple[str, ...] | None = None
    """Allowed models; the first is the default. None allows all."""
    priority: int = 0
    """Default and maximum priority of the key's requests."""

    def as_json(self) -> dict[str, Any]:
        """Return the limits as a JSON object, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Limits":
        """Return the limits of a JSON object; absent fields have their defaults, unknown ones are ignored."""
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        if known.get("models") is not None:
            known["models"] = tuple(known["models"])
        return cls(**known)


UNLIMITED = Limits(max_width=MAX_SIDE_PIXELS, max_height=MAX_SIDE_PIXELS, max_steps=MAX_STEPS, priority=100)
"""Limits without keys: those of the protocol."""
_SIZE_MULTIPLE = 16
"""Divisor of the sizes of a model whose capabilities are unknown: what most models accept."""


@dataclass(frozen=True, slots=True)
class LimitViolation:
    """A request field that exceeds the limits of the key."""

    field: str
    message: str


def find_violation(limits: Limits, options: Mapping[str, Any]) -> LimitViolation | None:
    """Return the first field of a request's options (`RequestOptions`) that exceeds the limits, or None."""
    who = "requests" if limits is UNLIMITED else "this key"
    model = options.get("model")
    if limits.models is not None and model is not None and model not in limits.models:
        return LimitViolation("model", f"model: this key may use {' or '.join(limits.models)}, got {model}")
    steps = options.get("num_inference_steps")
    if steps is not None and limits.max_steps is not None and steps > limits.max_steps:
        message = f"num_inference_steps: the maximum of {who} is {limits.max_steps}, got {steps}"
        return LimitViolation("num_inference_steps", message)
    for name, maximum in (("width", limits.max_width), ("height", limits.max_height)):
        if maximum is not None and (side := options.get(name)) is not None and side > maximum:
            return LimitViolation("size", f"size: the maximum {name} of {who} is {maximum}, got {side}")
    if (priority := options.get("priority")) is not None and priority > limits.priority:
        message = f"priority: the maximum of {who} is {limits.priority}, got {priority}"
        return LimitViolation("priority", message)
    return None


def with_defaults(limits: Limits, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the default model and priority of the key where the request has none."""
    defaults: dict[str, Any] = {"priority": 0 if limits is UNLIMITED else limits.priority}
    if limits.models is not None:
        defaults["model"] = limits.models[0]
    return {**defaults, **options}


def within_limits(
    limits: Limits,
    options: Mapping[str, Any],
    model: ModelCapabilities | None,
    image_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Return the options with values for what the request does not state and the key limits.

    The default number of steps is lowered to the maximum of the key, and the default size (`image_size`, if the
    input image sets it) is scaled down to its maximum. `model`: the capabilities of the model; while they are
    unknown, its defaults are not limited.
    """
    found = dict(options)
    if model is not None and limits.max_steps is not None and model.num_inference_steps > limits.max_steps:
        found.setdefault("num_inference_steps", limits.max_steps)
    if "width" in options and "height" in options:
        return found
    size = image_size or (None if model is None else (model.width, model.height))
    if size is None:
        return found
    width, height = options.get("width", size[0]), options.get("height", size[1])
    scale = min(1.0, (limits.max_width or width) / width, (limits.max_height or height) / height)
    if scale < 1:
        multiple = _SIZE_MULTIPLE if model is None else model.size_multiple
        for name, side in (("width", width), ("height", height)):
            found.setdefault(name, max(int(side * scale) // multiple, 1) * multiple)
    return found


@dataclass(slots=True)
class TokenBucket:
    """A rate limit of images; bursts are at most one minute's worth, at least 1. Times are monotonic seconds."""

    per_minute: float
    _tokens: float = field(init=False)
    _at: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._tokens = max(1.0, self.per_minute)

    def take(self, now: float) -> float:
        """Take one token and return 0; if there is none, return the seconds until there is one."""
        per_second = self.per_minute / 60
        if self._at is not None:
            self._tokens = min(max(1.0, self.per_minute), self._tokens + (now - self._at) * per_second)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / per_second

    def charge(self, tokens: int) -> None:
        """Take further tokens, even if there are too few: later calls of `take` wait until they are paid."""
        self._tokens -= tokens

    @property
    def remaining(self) -> float:
        """Number of tokens at the last `take`; negative while tokens are owed."""
        return self._tokens

    @property
    def reset_seconds(self) -> float:
        """Seconds from the last `take` until the bucket is full."""
        return max(0.0, max(1.0, self.per_minute) - self._tokens) * 60 / self.per_minute
