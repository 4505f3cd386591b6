"""What the daemons take, and what they make of the words and variables of a deployment."""

from pathlib import Path

import click

import imagegen_broker.cli
import imagegen_gateway.cli
import imagegen_worker.cli

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
COMMANDS = {
    "broker": imagegen_broker.cli.main,
    "gateway": imagegen_gateway.cli.main,
    "worker": imagegen_worker.cli.main,
}
OLD_NAMES = (
    "GPU_IDS",
    "ENABLE_BATCHING",
    "MAX_BATCH_SIZE",
    "MAX_BATCH_WAIT_TIME",
    "GPU_LOAD_BALANCE_STRATEGY",
    "IMAGEGEN_BROKER",
    "IMAGEGEN_FRONTEND",
)
BROKER_PORTS = {"frontend": 5555, "backend": 5556, "http": 8080}
WORKER_HTTP_PORT = 9101
GATEWAY_PORT = 8000


def variables(role):
    """Return the names of the environment that the command reads."""
    command = COMMANDS[role]
    prefix = command.context_settings["auto_envvar_prefix"]
    names = {f"{prefix}_{option.name}".upper() for option in command.params if isinstance(option, click.Option)}
    for option in command.params:
        given = option.envvar or ()
        names.update([given] if isinstance(given, str) else given)
    return names


def understood(role, words=(), environment=None, monkeypatch=None):
    """Return what a command works with, given words and variables; fails on those that it does not know."""
    for name in (*OLD_NAMES, *(environment or {})):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment or {}).items():
        monkeypatch.setenv(name, value)
    with COMMANDS[role].make_context(role, list(words)) as context:
        return context.params


def default(role, name):
    """Return an option's default, by its name in the program."""
    (option,) = [option for option in COMMANDS[role].params if option.name == name]
    return option.default
