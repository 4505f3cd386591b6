"""Where the broker's time goes: its loop under cProfile, by room of the source."""

import pstats
import sys
from collections import Counter
from pathlib import Path

from benchmarks.broker.contenders import started

_ROOMS = {
    "imagegen_broker/core/request_table.py": "request table",
    "imagegen_broker/core/client_sessions.py": "clients' messages",
    "imagegen_broker/core/worker_sessions.py": "workers' messages",
    "imagegen_broker/scheduling": "scheduling",
    "imagegen_broker/core": "the rest of the core",
    "imagegen_broker/server.py": "the loop",
    "imagegen_protocol": "headers to structs and back",
    "msgspec": "headers to structs and back",
    "logging": "log lines",
    "imagegen_common/logs.py": "log lines",
    "zmq": "sockets",
}


def profile(outstanding: int, seconds: float, out: Path) -> list[str]:
    """Run the broker under the profiler with so many requests outstanding; return the shares as Markdown.

    The profiler makes calls of Python functions dearer than they are, those of C functions less.
    """
    file = (out / "broker.prof").resolve()
    prefix = [sys.executable, "-m", "cProfile", "-o", str(file)]
    with started("imagegen", 1000, out / "logs", prefix) as contender:
        contender.rig.outstanding(outstanding, seconds)
    statistics = pstats.Stats(str(file))
    shares: Counter[str | None] = Counter()
    for (place, _, function), (_, _, own, _, callers) in statistics.stats.items():  # type: ignore[attr-defined]
        if "poll" in function:
            continue  # it waits
        if place != "~":
            shares[_room(place)] += own
            continue
        for (caller, _, _), (_, _, part, _) in callers.items():  # of C: it belongs to whoever calls it
            shares[_room(function) or _room(caller)] += part
    del shares[None]  # the start: imports, and the command line
    total = sum(shares.values())
    lines = [f"| share of the loop's time at {outstanding} outstanding, under cProfile | |", "|---|---|"]
    return lines + [f"| {room} | {share / total:.0%} |" for room, share in shares.most_common()]


def _room(place: str) -> str | None:
    return next((room for part, room in _ROOMS.items() if part in place), None)
