"""Targets of files and texts that others may write: settings, keys, prompts, names, log fields."""

import json
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import click

from imagegen_broker.cli import main as broker_command
from imagegen_cli.file_names import MAX_SLUG_LENGTH, sanitize, slug
from imagegen_cli.prompts import prepare, read_lines
from imagegen_common.logs import JsonFormatter, LineFormatter
from imagegen_common.settings import read_settings
from imagegen_gateway.cli import main as gateway_command
from imagegen_protocol import InvalidRequestError
from imagegen_protocol.keys import KeyFileError, read_allowed_keys, read_key_pair, read_public_key
from imagegen_worker.cli import main as worker_command
from tests.fuzz.choices import Choices


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="imagegen-fuzz-")


def close() -> None:
    """Remove the files of the targets."""
    _folder().cleanup()
    _folder.cache_clear()


def _write(name: str, data: bytes) -> Path:
    path = Path(_folder().name, name)
    path.write_bytes(data)
    return path


def settings_file(data: bytes) -> None:
    """Read a TOML file with the settings of a daemon."""
    path = _write("settings.toml", data)
    for command in (broker_command, worker_command, gateway_command):
        context = click.Context(command, info_name="test", auto_envvar_prefix="TEST")
        try:
            values, _ = read_settings(path, command, context)
        except click.UsageError as error:
            error.format_message().encode()
            continue
        assert values.keys() <= {option.name for option in command.params}


def key_file(data: bytes) -> None:
    """Read a key file in each of its roles."""
    path = _write("peer.key", data)
    for read in (read_key_pair, read_public_key):
        with suppress(KeyFileError):
            read(path)
    allowed = read_allowed_keys(path.parent)
    assert len(allowed.names) + len(allowed.problems) == 1


def prompts_file(data: bytes) -> None:
    """Read a file of prompts and validate its requests."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        requests = prepare(list(read_lines(text, "prompts.txt")), {}, 1)
    except InvalidRequestError as error:
        error.message.encode("utf-8", "surrogateescape")
        return
    assert all(0 <= seed < 2**63 for request in requests for seed in request.seeds)


def file_names(data: bytes) -> None:
    """Derive file names from prompts and from the names of models and workers."""
    text = data.decode("utf-8", "replace")
    assert 0 < len(slug(text)) <= MAX_SLUG_LENGTH
    name = sanitize(text)
    assert name
    assert Path(name).name == name
    assert name not in (".", "..")


def log_line(data: bytes) -> None:
    """Format a log line with a peer's text: it stays one line, and JSON stays JSON."""
    choices = Choices(data)
    name = choices.bytes(choices.integer(0, 64)).decode("utf-8", "surrogateescape")
    text = choices.rest().decode("utf-8", "surrogateescape")
    fields = {"worker": name, "error": text, "model": None, "seconds": float("inf")}
    for formatter in (LineFormatter({}), JsonFormatter({})):
        line = formatter.line(0.0, 30, "imagegen.broker", text, fields)
        assert line.isprintable(), line
    found = json.loads(JsonFormatter({}).line(0.0, 30, "imagegen.broker", "event", fields))
    assert found["message"] == "event"
