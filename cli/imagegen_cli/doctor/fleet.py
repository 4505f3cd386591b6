"""Is the fleet well? Pure checks of what the brokers answered."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from imagegen_cli.doctor.findings import Finding, ok, problem, warning
from imagegen_cli.durations import clock, roughly
from imagegen_protocol import UnauthorizedError
from imagegen_protocol.handshake import BROKEN_WITH_KEYS, BROKEN_WITHOUT_KEYS, KEYS_UNCHECKED, OTHER_SECURITY
from imagegen_protocol.statistics import GpuStatistics, Heartbeat, Statistics

Silence = Literal["refused", "unknown host", "no way", "open"]
"""What a plain connection to a broker that does not answer comes to."""

_MISSED_HEARTBEATS = 2
"""One may be late on a busy machine."""
_BROKER_SERVER = "imagegen-broker"

_ADMIT = "copy your .key file into the broker's --authorized-clients folder and send the broker a SIGHUP"
_OTHER_PROGRAM = "bring client and broker to one version; is it an imagegen-broker at all?"
_REMEDIES = {
    KEYS_UNCHECKED: "see the broker's log",
    OTHER_SECURITY: "give --key and --broker-key if the broker demands keys, leave them out if it does not; or the"
    " port is another's (5555 is for clients, 5556 for workers)",
    BROKEN_WITH_KEYS: "check that the broker runs; give its own .key file as --broker-key, or no keys if"
    " it uses none",
    BROKEN_WITHOUT_KEYS: "check that the broker runs; give --key and --broker-key if it demands keys",
}


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """How one broker answered: with `statistics`, with a `refusal` and its `code`, or not within `seconds`.

    `suspicion`: the likely reason why no handshake with it succeeded; "" if there was none to fail.
    """

    endpoint: str
    statistics: Statistics | None = None
    refusal: str = ""
    code: str = ""
    suspicion: str = ""
    silence: Silence | None = None
    reason: str = ""
    """What the system said of the connection."""
    seconds: float = 0.0

    @property
    def workers(self) -> Sequence[GpuStatistics]:
        """The workers of the broker."""
        return () if self.statistics is None else self.statistics.per_gpu_stats


@dataclass(frozen=True, slots=True)
class HttpFacts:
    """What `/healthz` of a broker answered; without a `status` nothing did, for a `reason`."""

    url: str
    status: int | None = None
    server: str = ""
    reason: str = ""


def check_broker(facts: BrokerFacts) -> Finding:
    """Say whether a broker answers."""
    check, endpoint = "broker", facts.endpoint
    if facts.statistics is not None:
        up, count = clock(facts.statistics.uptime_seconds), len(facts.workers)
        return ok(check, f"{endpoint} answers: up {up}, {count} worker{'s' if count != 1 else ''}")
    if facts.refusal:
        reason = facts.refusal.removeprefix(f"{endpoint}: ")
        remedy = _ADMIT if facts.code == UnauthorizedError.code else _OTHER_PROGRAM
        return problem(check, f"{endpoint} refuses us: {reason}", remedy)
    if facts.suspicion and facts.silence in (None, "open"):
        return problem(check, f"{endpoint} can't be used: {facts.suspicion}", _REMEDIES[facts.suspicion])
    match facts.silence:
        case "refused":
            remedy = "start imagegen-broker there, or say where it is with --broker or IMAGEGEN_FRONTEND"
            return problem(check, f"nothing listens at {endpoint}", remedy)
        case "unknown host":
            remedy = "correct the name in --broker or IMAGEGEN_FRONTEND, or this machine's name resolution"
            return problem(check, f"the host of {endpoint} is not known: {facts.reason}", remedy)
        case "open":
            words = f"something listens at {endpoint}, and gave no answer within {facts.seconds:.3g} s"
            remedy = "give a broker's frontend (5555), not its backend (5556); if it is one, it hangs: see its log"
            return problem(check, words, remedy)
    remedy = "check the network, and that a firewall lets the port through"
    return problem(check, f"{endpoint} can't be reached: {facts.reason}", remedy)


def check_http(facts: HttpFacts) -> Finding:
    """Say whether a broker's HTTP answers."""
    if facts.status is None:
        remedy = "give --http as the broker's own --http says, or check that it is not off"
        return problem("http", f"{facts.url} can't be reached: {facts.reason}", remedy)
    if not facts.server.startswith(_BROKER_SERVER):
        other = facts.server or "a server without a name"
        remedy = "give another --http, or start the broker with another one"
        return problem("http", f"{facts.url} is no imagegen-broker, but {other}", remedy)
    if facts.status != 200:
        return problem("http", f"{facts.url} answers with {facts.status}", "the broker's loop hangs: see its log")
    return ok("http", f"{facts.url} answers")


def check_workers(facts: BrokerFacts) -> Iterator[Finding]:
    """Yield a finding for each worker that a broker knows, for there being none, and for those it lost."""
    if facts.statistics is None:
        return
    if not facts.workers:
        remedy = "start one: imagegen-worker --broker with the broker's backend (port 5556); its log says why not"
        yield problem("worker", f"{facts.endpoint} has no worker: requests wait", remedy)
    for worker in facts.workers:
        yield _worker(worker, facts.statistics.heartbeat)
    if lost := facts.statistics.totals.workers_lost:
        since = clock(facts.statistics.uptime_seconds)
        words = f"{facts.endpoint} has lost {lost} worker{'s' if lost != 1 else ''} in the {since} that it is up"
        yield warning("worker", words, "see the broker's log for which, and the log of that worker for why")


def _worker(worker: GpuStatistics, heartbeat: Heartbeat) -> Finding:
    name = f"{worker.worker} ({worker.host}, GPU {worker.gpu_id})"
    age, interval = worker.last_heard_seconds, heartbeat.interval_seconds
    if worker.state == "stuck":
        step = roughly(worker.step_age_seconds or 0.0)
        remedy = "see nvidia-smi and dmesg there; if the worker does not end by itself (--step-timeout), kill it"
        return problem("worker", f"{name} is stuck: its step has run for {step}", remedy)
    if worker.state == "unreachable":
        remedy = "check the worker's process and the network between them"
        return problem("worker", f"{name} can't be reached by its broker; last word {roughly(age)} ago", remedy)
    if age > _MISSED_HEARTBEATS * interval:
        words = f"{name}: last word {roughly(age)} ago, {int(age / interval)} heartbeats are missing"
        dead = interval * heartbeat.liveness
        remedy = f"see whether its process lives and its host is busy; after {dead:.3g} s it counts as dead"
        return warning("worker", words, remedy)
    if worker.state == "draining":
        return warning("worker", f"{name} is draining", "nothing, if that was wanted; else start it again")
    return ok("worker", f"{name}: last word {roughly(age)} ago")


def check_models(facts: BrokerFacts) -> Iterator[Finding]:
    """Yield what is wrong with the models of a broker, or the one line that says which it serves."""
    if facts.statistics is None:
        return
    default = facts.statistics.default_model
    rows = {row.model: row for row in facts.statistics.per_model_stats}
    unserved = {name: row.unfinished for name, row in rows.items() if not row.workers}
    if default is not None and default not in rows:
        unserved[default] = 0
    remedy = "start a worker that serves it (imagegen-worker --model)"
    for name, unfinished in unserved.items():
        words = f"no worker takes work for {name}"
        if unfinished:
            yield problem("model", f"{words}, and there is: {unfinished}", remedy)
        elif name == default:
            yield problem(
                "model", f"{words}, the default", f"{remedy}, or give the broker another --default-model"
            )
        else:
            yield warning("model", f"{words} any more", f"{remedy}, if anybody should")
    if served := [name for name in rows if name not in unserved]:
        names = [f"{name} (default)" if name == default else name for name in served]
        yield ok("model", f"served by {facts.endpoint}: {', '.join(names)}")


def check_versions(brokers: Sequence[BrokerFacts], own: str) -> Finding:
    """Say whether client, brokers and workers are of one version; who tells none is left out."""
    who: defaultdict[str, list[str]] = defaultdict(list)
    who[own].append("this client")
    for facts in brokers:
        if facts.statistics is not None and facts.statistics.version:
            who[facts.statistics.version].append(facts.endpoint)
    workers = {worker.worker: worker for facts in brokers for worker in facts.workers}
    for name, worker in workers.items():
        if worker.version:
            who[worker.version].append(name)
    told = "; ".join(f"{version}: {', '.join(names)}" for version, names in sorted(who.items()))
    if len(who) > 1:
        remedy = "bring all to one version (docs/operations.md, Upgrade)"
        return warning("version", f"versions are mixed: {told}", remedy)
    return ok("version", told)
