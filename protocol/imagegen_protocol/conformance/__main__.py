"""`python -m imagegen_protocol.conformance`: the command."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from imagegen_protocol.conformance import (
    broker_requests,
    broker_sessions,
    broker_transfers,
    broker_workers,
    client_checks,
    worker_checks,
)
from imagegen_protocol.conformance.broker_bench import BrokerBench
from imagegen_protocol.conformance.client_bench import ClientBench
from imagegen_protocol.conformance.report import Check, Checks, Outcome, outcome, table
from imagegen_protocol.conformance.worker_bench import WorkerBench
from imagegen_protocol.terminal import escape_controls

T = TypeVar("T")
B = TypeVar("B", ClientBench, WorkerBench)
_PATIENCE_SECONDS = 15.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 if a check has failed, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    outcomes: list[Outcome] = options.run(options)
    sys.stdout.write(escape_controls(table(outcomes)) + "\n")
    return int(any(each.result == "fail" for each in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imagegen_protocol.conformance",
        description="Check whether an implementation follows docs/protocol.md, over real sockets.",
    )
    roles = parser.add_subparsers(title="role of the implementation", required=True)
    text = "connect clients and workers to an idle broker"
    broker = _role(roles, "broker", _run_broker, text)
    broker.add_argument("frontend", help="address for clients, such as tcp://127.0.0.1:5555")
    broker.add_argument("backend", help="address for workers, such as tcp://127.0.0.1:5556")
    text = "bind an address and wait for a client, which has to send requests until the command ends"
    client = _role(roles, "client", _run_client, text)
    client.add_argument("address", help="address to bind, such as tcp://127.0.0.1:5555")
    text = "bind an address and wait for a worker, which is drained at the end"
    worker = _role(roles, "worker", _run_worker, text)
    worker.add_argument("address", help="address to bind, such as tcp://127.0.0.1:5556")
    return parser


def _role(
    roles: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], list[Outcome]],
    description: str,
) -> argparse.ArgumentParser:
    role = roles.add_parser(name, help=description, description=description.capitalize() + ".")
    role.set_defaults(run=run)
    role.add_argument("--only", metavar="ID", action="append", help="run the checks of one requirement only")
    role.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=_PATIENCE_SECONDS,
        help="time within which an expected message must arrive (default: %(default)g)",
    )
    return role


def _run_broker(options: argparse.Namespace) -> list[Outcome]:
    """Run the checks of a broker, each with peers of its own; only the first if no broker answers."""
    modules = (broker_sessions, broker_requests, broker_transfers, broker_workers)
    checks = [check for module in modules for check in module.CHECKS.all if _is_selected(check, options)]
    answers = Check("R-4.1", "the broker answers on both ports", _answers)
    first = _run_on_new_bench(answers, options)
    if first.result == "fail":
        return [first]
    return [_run_on_new_bench(check, options) for check in checks]


def _answers(bench: BrokerBench) -> str:
    bench.connected_client()
    bench.registered_worker()
    return "both ports"


def _run_client(options: argparse.Namespace) -> list[Outcome]:
    return _run_on_one_bench(
        "client", ClientBench(options.address, options.timeout), client_checks.CHECKS, options
    )


def _run_worker(options: argparse.Namespace) -> list[Outcome]:
    return _run_on_one_bench(
        "worker", WorkerBench(options.address, options.timeout), worker_checks.CHECKS, options
    )


def _run_on_one_bench(role: str, bench: B, checks: Checks[B], options: argparse.Namespace) -> list[Outcome]:
    """Run the checks of an implementation that connects to the tool."""
    outcomes = []
    try:
        _log(f"waiting for a {role} at {bench.broker.endpoint}")
        for check in checks.all:
            if _is_selected(check, options):
                _log(f"{check.requirement}: {check.title}")
                outcomes.append(outcome(check, bench))
                bench.settle()
            if outcomes and not bench.broker.peers:
                break  # nothing connects
    finally:
        bench.close()
    return outcomes


def _is_selected(check: Check[T], options: argparse.Namespace) -> bool:
    return not options.only or check.requirement in options.only


def _run_on_new_bench(check: Check[BrokerBench], options: argparse.Namespace) -> Outcome:
    """Run a check with peers of its own."""
    _log(f"{check.requirement}: {check.title}")
    bench = BrokerBench(options.frontend, options.backend, options.timeout)
    try:
        return outcome(check, bench)
    finally:
        bench.close()


def _log(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
