"""`imagegen doctor`: check the fleet and this machine."""

import json
import logging
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Unpack

import click

from imagegen_cli.commands.options import Connection, broker_options
from imagegen_cli.doctor import fleet_checks, machine_checks, machine_probes
from imagegen_cli.doctor.findings import Finding, Status, report, worst
from imagegen_cli.doctor.fleet_checks import BrokerFacts
from imagegen_cli.doctor.network_probes import (
    is_local_host,
    parse_http_address,
    parse_url,
    query_brokers,
    query_http,
)
from imagegen_cli.terminal import echo
from imagegen_common.listeners import listener
from imagegen_protocol.endpoints import parse_address, parse_endpoint

_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "red"}
_WIDTH = max(len(status) for status in Status)


def _check_http(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    try:
        return None if given is None else parse_http_address(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _check_url(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    try:
        return None if given is None else parse_url(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("doctor")
@click.option(
    "--http", metavar="HOST:PORT", callback=_check_http, help="HTTP address of a broker, to be checked as well."
)
@click.option(
    "--gateway", metavar="URL", callback=_check_url, help="URL of a gateway, such as http://127.0.0.1:8000."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]SOURCE",
    help="Model to check with imagegen-worker on this machine; may be given several times.",
)
@click.option(
    "--only",
    type=click.Choice(["fleet", "machine"]),
    help="Check only the fleet or only this machine.  [default: both]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@broker_options
@click.pass_context
def command(
    context: click.Context,
    http: str | None,
    gateway: str | None,
    models: tuple[str, ...],
    only: str | None,
    as_json: bool,
    **connection: Unpack[Connection],
) -> None:
    """Check the fleet and this machine, and suggest remedies.

    Prints one line per check: ok, warning (works, but needs attention) or problem. Checks of the fleet: keys,
    brokers, workers and their heartbeats, models, a gateway, versions. Checks of this machine: ports of a local
    broker, GPUs and driver, torch, disk, memory, and the models given with --model.

    \b
    Examples:
      imagegen doctor
      imagegen doctor --broker tcp://broker:5555 --http broker:8080 --only fleet
      imagegen doctor --gateway http://127.0.0.1:8000
      imagegen doctor --only machine --model /models/sdxl
      imagegen doctor --json | jq '.findings[] | select(.status != "ok")'

    \b
    Exit status:
      0  no problem; there may be warnings
      1  at least one problem
    """
    # Handshake failures are reported as findings; do not log them as well.
    logging.getLogger("imagegen.client").addHandler(logging.NullHandler())
    findings = list(_findings(connection, http, gateway, models, only))
    if as_json:
        echo(json.dumps(report(findings), indent=2, ensure_ascii=False))
    else:
        _print(findings)
    context.exit(1 if worst(findings) is Status.PROBLEM else 0)


def _findings(
    connection: Connection,
    http: str | None,
    gateway: str | None,
    models: tuple[str, ...],
    only: str | None,
) -> Iterator[Finding]:
    brokers: list[BrokerFacts] = []
    key, broker_key, timeout = connection["key"], connection["broker_key"], connection["connect_timeout"]
    if only != "machine":
        keys = machine_probes.inspect_keys(key, broker_key)
        yield from map(machine_checks.check_key, keys)
        # Without valid key files no broker can be queried; too wide permissions do not prevent it.
        if not any(facts.error for facts in keys):
            brokers = query_brokers(list(dict.fromkeys(connection["brokers"])), timeout, key, broker_key)
        yield from map(fleet_checks.check_broker, brokers)
        if http is not None:
            yield fleet_checks.check_http(query_http(f"http://{http}/healthz", timeout))
        if gateway is not None:
            yield fleet_checks.check_gateway(query_http(f"{gateway}/readyz", timeout))
        for facts in brokers:
            yield from fleet_checks.check_workers(facts)
            yield from fleet_checks.check_models(facts)
        yield fleet_checks.check_versions(brokers, version("imagegen-fleet"))
    if only != "fleet":
        yield from _ports(connection["brokers"], brokers, http)
        yield from _machine(models)


def _ports(endpoints: Iterable[str], brokers: Iterable[BrokerFacts], http: str | None) -> Iterator[Finding]:
    """Check the ports of brokers whose endpoint is on this machine."""
    answering = {facts.endpoint for facts in brokers if facts.statistics is not None}
    seen: set[int] = set()
    http_port = None if http is None else parse_address(http)[1]
    for endpoint in endpoints:
        parsed = parse_endpoint(endpoint)
        if parsed.path or not is_local_host(parsed.host):
            continue
        for port, option in machine_checks.ports_of(parsed.port, http_port):
            if port not in seen:
                seen.add(port)
                holder, pid = listener(port) or (None, None)
                yield machine_checks.check_port(
                    machine_checks.PortFacts(port, option, holder, pid, endpoint in answering)
                )


def _machine(models: Iterable[str]) -> Iterator[Finding]:
    gpus = machine_probes.inspect_gpus()
    yield machine_checks.check_gpu(gpus)
    may_run_worker = machine_probes.is_torch_installed()
    if may_run_worker:
        yield machine_checks.check_torch(machine_probes.inspect_torch(), gpus)
    yield machine_checks.check_disk(machine_probes.inspect_disk(needed=may_run_worker))
    yield machine_checks.check_memory(machine_probes.inspect_memory(needed=may_run_worker))
    yield from (machine_checks.check_model(machine_probes.inspect_model(source)) for source in models)


def _print(findings: Iterable[Finding]) -> None:
    for finding in findings:
        label = click.style(f"{finding.status:<{_WIDTH}}", fg=_STYLES[finding.status])
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        # Text received from peers may contain line breaks.
        echo(f"  {finding.check}: {' '.join(f'{finding.message}{remedy}'.split())}", label=label)
