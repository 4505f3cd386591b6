"""Checks of the fleet: pure functions of the brokers' answers."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from imagegen_cli.doctor.findings import Finding, ok, problem, warning
from imagegen_cli.durations import format_duration, format_estimate
from imagegen_protocol import UnauthorizedError
from imagegen_protocol.handshake import BROKEN_WITH_KEYS, BROKEN_WITHOUT_KEYS, KEYS_UNCHECKED, OTHER_SECURITY
from imagegen_protocol.statistics import GpuStatistics, Heartbeat, Statistics

ConnectionResult = Literal["refused", "unknown host", "unreachable", "open"]
"""Result of a plain connection to a broker that does not answer."""

_MISSED_HEARTBEATS = 2
"""Missed heartbeats that are tolerated: one may be late on a busy machine."""
_BROKER_SERVER = "imagegen-broker"

_ADMIT = "copy your .key file into the broker's --authorized-clients folder and send the broker a SIGHUP"
_OTHER_PROGRAM = (
    "check that it is the frontend of an imagegen-broker, not its backend, and has this client's version"
)
_REMEDIES = {
    KEYS_UNCHECKED: "see the broker's log",
    OTHER_SECURITY: "give --key and --broker-key only if the broker requires keys; check the port (5555 is for"
    " clients, 5556 for workers)",
    BROKEN_WITH_KEYS: "check that the broker runs; give its .key file as --broker-key, or no keys if it uses none",
    BROKEN_WITHOUT_KEYS: "check that the broker runs; give --key and --broker-key if it requires keys",
}


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """Answer of one broker: `statistics`, an error (`refusal` and `code`), or none within `seconds`.

    `suspicion`: likely reason why the broker does not serve this client; "" if unknown.
    """

    endpoint: str
    statistics: Statistics | None = None
    refusal: str = ""
    code: str = ""
    suspicion: str = ""
    connection: ConnectionResult | None = None
    reason: str = ""
    """Error of the operating system for the connection."""
    seconds: float = 0.0

    @property
    def workers(self) -> Sequence[GpuStatistics]:
        """Workers registered at the broker."""
        return () if self.statistics is None else self.statistics.per_gpu_stats


@dataclass(frozen=True, slots=True)
class HttpFacts:
    """Answer of a broker or gateway; without a `status` there was none, because of `reason`."""

    url: str
    status: int | None = None
    server: str = ""
    reason: str = ""
    text: str = ""
    """The beginning of the body."""


def check_broker(facts: BrokerFacts) -> Finding:
    """Check that a broker answers."""
    check, endpoint = "broker", facts.endpoint
    if facts.statistics is not None:
        up, count = format_duration(facts.statistics.uptime_seconds), len(facts.workers)
        return ok(check, f"{endpoint} answers: up {up}, {count} worker{'s' if count != 1 else ''}")
    if facts.refusal:
        reason = facts.refusal.removeprefix(f"{endpoint}: ")
        remedy = _ADMIT if facts.code == UnauthorizedError.code else _OTHER_PROGRAM
        return problem(check, f"{endpoint} rejects this client: {reason}", remedy)
    if facts.suspicion and facts.connection in (None, "open"):
        remedy = _REMEDIES.get(facts.suspicion, "see the broker's log")
        return problem(check, f"{endpoint} is unusable: {facts.suspicion}", remedy)
    match facts.connection:
        case "refused":
            remedy = "start a fleet with imagegen up, or set its endpoint with --broker or IMAGEGEN_FRONTEND"
            return problem(check, f"nothing listens at {endpoint}", remedy)
        case "unknown host":
            remedy = "correct the name in --broker or IMAGEGEN_FRONTEND, or this machine's name resolution"
            return problem(check, f"the host of {endpoint} is unknown: {facts.reason}", remedy)
        case "open":
            message = f"a program listens at {endpoint}, but did not answer within {facts.seconds:.3g} s"
            remedy = "use the broker's frontend (5555), not its backend (5556); if it is the frontend, see its log"
            return problem(check, message, remedy)
    remedy = "check the network and the firewall"
    return problem(check, f"{endpoint} is unreachable: {facts.reason}", remedy)


def check_http(facts: HttpFacts) -> Finding:
    """Check that a broker's HTTP server answers."""
    if facts.status is None:
        remedy = "give the same --http as the broker, and check that the broker's is not off"
        return problem("http", f"{facts.url} is unreachable: {facts.reason}", remedy)
    if not facts.server.startswith(_BROKER_SERVER):
        other = facts.server or "an unknown server"
        remedy = "correct --http, or start the broker with another one"
        return problem("http", f"expected imagegen-broker at {facts.url}, got {other}", remedy)
    if facts.status != 200:
        return problem("http", f"{facts.url} answers with status {facts.status}", "see the broker's log")
    return ok("http", f"{facts.url} answers")


def check_gateway(facts: HttpFacts) -> Finding:
    """Check that a gateway answers and can generate images, by its `/readyz`."""
    if facts.status is None:
        remedy = "start imagegen-gateway there, or correct --gateway"
        return problem("gateway", f"{facts.url} is unreachable: {facts.reason}", remedy)
    if facts.status == HTTPStatus.SERVICE_UNAVAILABLE:
        remedy = "start what is missing; imagegen up starts a whole fleet on one machine"
        return problem("gateway", f"{facts.url} answers, but can't generate images: {facts.text}", remedy)
    if facts.status != HTTPStatus.OK or facts.text != "ok":
        message = f"expected imagegen-gateway at {facts.url}, got status {facts.status}"
        return problem("gateway", message, "correct --gateway: a URL such as http://127.0.0.1:8000")
    return ok("gateway", f"{facts.url} answers, and has a worker")


def check_workers(facts: BrokerFacts) -> Iterator[Finding]:
    """Yield a finding for each worker of a broker, and for lost or missing workers."""
    if facts.statistics is None:
        return
    if not facts.workers:
        remedy = "start imagegen-worker with --broker set to the broker's backend (port 5556), and see its log"
        yield problem("worker", f"{facts.endpoint} has no worker: requests wait", remedy)
    for worker in facts.workers:
        yield _worker(worker, facts.statistics.heartbeat)
    if lost := facts.statistics.totals.workers_lost:
        since = format_duration(facts.statistics.uptime_seconds)
        message = f"{facts.endpoint} has lost {lost} worker{'s' if lost != 1 else ''} in its uptime of {since}"
        yield warning("worker", message, "see the broker's log for their names, and the workers' logs")


def _worker(worker: GpuStatistics, heartbeat: Heartbeat) -> Finding:
    name = f"{worker.worker} ({worker.host}, GPU {worker.gpu_id})"
    age, interval = worker.last_heard_seconds, heartbeat.interval_seconds
    if worker.state == "stuck":
        step = format_estimate(worker.step_age_seconds or 0.0)
        remedy = (
            "see nvidia-smi and dmesg on its host; kill the worker if it does not exit by itself (--step-timeout)"
        )
        return problem("worker", f"{name} is stuck: its step has run for {step}", remedy)
    if worker.state == "unreachable":
        remedy = "check the worker's process and the network between them"
        return problem(
            "worker", f"{name} is unreachable for its broker; last heard {format_estimate(age)} ago", remedy
        )
    if age > _MISSED_HEARTBEATS * interval:
        message = f"{name}: last heard {format_estimate(age)} ago, {int(age / interval)} heartbeats missed"
        dead = interval * heartbeat.liveness
        remedy = f"check its process and the load of its host; it counts as dead after {dead:.3g} s"
        return warning("worker", message, remedy)
    if worker.state == "draining":
        return warning("worker", f"{name} is draining", "none if intended; otherwise restart it")
    return ok("worker", f"{name}: last heard {format_estimate(age)} ago")


def check_models(facts: BrokerFacts) -> Iterator[Finding]:
    """Yield a finding for each model without workers, and one for the served models."""
    if facts.statistics is None:
        return
    default = facts.statistics.default_model
    rows = {row.model: row for row in facts.statistics.per_model_stats}
    unserved = {name: row.unfinished for name, row in rows.items() if not row.workers}
    if default is not None and default not in rows:
        unserved[default] = 0
    remedy = "start a worker that serves it (imagegen-worker --model)"
    for name, unfinished in unserved.items():
        message = f"no worker serves {name}"
        if unfinished:
            yield problem("model", f"{message}, which has {unfinished} unfinished requests", remedy)
        elif name == default:
            yield problem(
                "model", f"{message}, the default model", f"{remedy}, or give the broker another --default-model"
            )
        else:
            yield warning("model", f"{message} any more", f"{remedy}, if it is still needed")
    if served := [name for name in rows if name not in unserved]:
        names = [f"{name} (default)" if name == default else name for name in served]
        yield ok("model", f"served by {facts.endpoint}: {', '.join(names)}")


def check_versions(brokers: Sequence[BrokerFacts], own: str) -> Finding:
    """Check that client, brokers and workers have one version; unknown versions are left out."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    members[own].append("this client")
    for facts in brokers:
        if facts.statistics is not None and facts.statistics.version:
            members[facts.statistics.version].append(facts.endpoint)
    workers = {worker.worker: worker for facts in brokers for worker in facts.workers}
    for name, worker in workers.items():
        if worker.version:
            members[worker.version].append(name)
    versions = "; ".join(f"{version}: {', '.join(names)}" for version, names in sorted(members.items()))
    if len(members) > 1:
        remedy = "upgrade all to one version (docs/operations.md, Upgrade)"
        return warning("version", f"versions differ: {versions}", remedy)
    return ok("version", versions)
