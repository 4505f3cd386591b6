"""How long a worker is patient, and how much it keeps."""

from dataclasses import dataclass, field

from imagegen_worker.core.held import HeldLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Bounds, in bytes and seconds.

    `orphan_seconds`: how long queued work is kept for a broker that is silent. `drain_seconds`: how long a
    draining worker that has nothing left to do waits for the release of its answers. `step_timeout`: age of a
    running step beyond which the device counts as hung, and the process ends; None or 0: never.
    """

    held: HeldLimits = field(default_factory=HeldLimits)
    orphan_seconds: float = 60.0
    drain_seconds: float = 30.0
    step_timeout: float | None = 300.0
