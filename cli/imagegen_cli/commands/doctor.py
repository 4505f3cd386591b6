"""`imagegen doctor`: is the fleet well, and is this machine?"""

import json
import logging
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Unpack

import click

from imagegen_cli.commands.options import Connection, broker_options
from imagegen_cli.doctor import fleet, looking, machine
from imagegen_cli.doctor.asking import ask_brokers, ask_http, http_address, is_here
from imagegen_cli.doctor.findings import Finding, Status, report, worst
from imagegen_cli.doctor.fleet import BrokerFacts
from imagegen_cli.doctor.listeners import listener
from imagegen_protocol.endpoints import parse_address, parse_endpoint

_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "red"}
_WIDTH = max(len(status) for status in Status)


def _check_http(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    try:
        return None if given is None else http_address(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("doctor")
@click.option(
    "--http",
    metavar="HOST:PORT",
    callback=_check_http,
    help="Where a broker's HTTP is, to be looked at too.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]SOURCE",
    help="A model that a worker of this machine is to serve; imagegen-worker checks what it would start with.",
)
@click.option(
    "--only", type=click.Choice(["fleet", "machine"]), help="Look at one of the two.  [default: look at both]"
)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@broker_options
@click.pass_context
def command(
    context: click.Context,
    http: str | None,
    models: tuple[str, ...],
    only: str | None,
    as_json: bool,
    **connection: Unpack[Connection],
) -> None:
    """Look at the fleet and at this machine, and say what to do.

    A line for each thing: ok, warning (it works, and should be looked at) or problem, with a remedy. Of the
    fleet: brokers, keys, workers and their heartbeats, models, versions. Of this machine: the ports of a broker
    that is here, GPUs and driver, torch, disk, memory, and the sources of --model.

    \b
    Examples:
      imagegen doctor
      imagegen doctor --broker tcp://broker:5555 --http broker:8080 --only fleet
      imagegen doctor --only machine --model /models/sdxl
      imagegen doctor --json | jq '.findings[] | select(.status != "ok")'

    \b
    Exit status:
      0  nothing is wrong, though there may be warnings
      1  there is a problem
    """
    # What a peer complains of is told as a finding, and not in a log line too.
    logging.getLogger("imagegen.client").addHandler(logging.NullHandler())
    findings = list(_findings(connection, http, models, only))
    if as_json:
        click.echo(json.dumps(report(findings), indent=2, ensure_ascii=False))
    else:
        _print(findings)
    context.exit(1 if worst(findings) is Status.PROBLEM else 0)


def _findings(
    connection: Connection, http: str | None, models: tuple[str, ...], only: str | None
) -> Iterator[Finding]:
    brokers: list[BrokerFacts] = []
    key, broker_key, patience = connection["key"], connection["broker_key"], connection["connect_timeout"]
    if only != "machine":
        keys = looking.look_at_keys(key, broker_key)
        yield from map(machine.check_key, keys)
        # With keys that can't be read nobody can be asked; one that others can read opens the door all the same.
        if not any(facts.error for facts in keys):
            brokers = ask_brokers(list(dict.fromkeys(connection["brokers"])), patience, key, broker_key)
        yield from map(fleet.check_broker, brokers)
        if http is not None:
            yield fleet.check_http(ask_http(http, patience))
        for facts in brokers:
            yield from fleet.check_workers(facts)
            yield from fleet.check_models(facts)
        yield fleet.check_versions(brokers, version("imagegen-fleet"))
    if only != "fleet":
        yield from _ports(connection["brokers"], brokers, http)
        yield from _machine(models)


def _ports(endpoints: Iterable[str], brokers: Iterable[BrokerFacts], http: str | None) -> Iterator[Finding]:
    """Look at the ports of the brokers that are, or would be, on this machine."""
    answering = {facts.endpoint for facts in brokers if facts.statistics is not None}
    seen: set[int] = set()
    web = None if http is None else parse_address(http)[1]
    for endpoint in endpoints:
        parsed = parse_endpoint(endpoint)
        if parsed.path or not is_here(parsed.host):
            continue
        for port, option in machine.ports_of(parsed.port, web):
            if port not in seen:
                seen.add(port)
                holder, pid = listener(port) or (None, None)
                yield machine.check_port(machine.PortFacts(port, option, holder, pid, endpoint in answering))


def _machine(models: Iterable[str]) -> Iterator[Finding]:
    gpus = looking.look_at_gpus()
    yield machine.check_gpu(gpus)
    runs_models = looking.has_torch()
    if runs_models:
        yield machine.check_torch(looking.look_at_torch(), gpus)
    yield machine.check_disk(looking.look_at_disk(needed=runs_models))
    yield machine.check_memory(looking.look_at_memory(needed=runs_models))
    yield from (machine.check_model(looking.look_at_model(source)) for source in models)


def _print(findings: Iterable[Finding]) -> None:
    for finding in findings:
        label = click.style(f"{finding.status:<{_WIDTH}}", fg=_STYLES[finding.status])
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        # What others sent may have line breaks in it.
        click.echo(f"{label}  {finding.check}: {' '.join(f'{finding.message}{remedy}'.split())}")
