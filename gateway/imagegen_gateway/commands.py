"""The commands `imagegen-gateway keys …`."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from imagegen_common.addresses import ConfigError
from imagegen_common.command_line import IntegerRange, NumberRange
from imagegen_gateway.core.limits import Limits
from imagegen_protocol.limits import MAX_NAME_LENGTH, MAX_SIDE_PIXELS, MAX_STEPS

T = TypeVar("T")
_SIZE = re.compile(r"(\d{1,4})x(\d{1,4})")


class _Size(click.ParamType[Any]):
    name = "WIDTHxHEIGHT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        parts = _SIZE.fullmatch(value)
        if parts is None or not all(8 <= int(side) <= MAX_SIDE_PIXELS for side in parts.groups()):
            self.fail(f"expected WIDTHxHEIGHT, 8 to {MAX_SIDE_PIXELS} pixels each, got {value!r}", param, ctx)
        return int(parts[1]), int(parts[2])


def _with_keys(folder: Path, work: Callable[[Any], Awaitable[T]]) -> T:
    """Run `work` with the key store of a state folder. Raises `click.ClickException`."""
    from imagegen_gateway.database import STATE_FILES, DatabaseError, open_database
    from imagegen_gateway.keys import ApiKeyError, ApiKeyStore
    from imagegen_gateway.state_folder import make_private

    async def run() -> T:
        async with open_database(folder) as database:
            return await work(ApiKeyStore(database))

    try:
        make_private(folder, *STATE_FILES)
        return asyncio.run(run())
    except (ApiKeyError, ConfigError, DatabaseError) as error:
        raise click.ClickException(str(error)) from error


def _name(context: click.Context, argument: click.Parameter, name: str) -> str:
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise click.BadParameter(f"expected 1 to {MAX_NAME_LENGTH} printable characters, got {name!r}")
    return name


@click.command("add")
@click.argument("name", callback=_name)
@click.option(
    "--requests-per-minute",
    type=NumberRange(0, min_open=True, max=1e6),
    help="Maximum number of images per minute.  [default: unlimited]",
)
@click.option(
    "--max-in-flight",
    type=IntegerRange(1),
    help="Maximum number of unfinished requests and jobs.  [default: unlimited]",
)
@click.option("--max-size", type=_Size(), help="Maximum width and height.  [default: unlimited]")
@click.option(
    "--max-steps",
    type=IntegerRange(1, MAX_STEPS),
    help="Maximum number of denoising steps.  [default: unlimited]",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Allowed model; repeatable. The first is the default of the key.  [default: all models]",
)
@click.option(
    "--priority",
    type=IntegerRange(-100, 100),
    default=0,
    help="Default and maximum priority of its requests.  [default: 0]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_obj
def add(
    folder: Path,
    name: str,
    requests_per_minute: float | None,
    max_in_flight: int | None,
    max_size: tuple[int, int] | None,
    max_steps: int | None,
    models: tuple[str, ...],
    priority: int,
    as_json: bool,
) -> None:
    """Create a key called NAME; print the key, which is not stored, and the secret that signs its webhooks."""
    limits = Limits(
        requests_per_minute=requests_per_minute,
        max_in_flight=max_in_flight,
        max_width=None if max_size is None else max_size[0],
        max_height=None if max_size is None else max_size[1],
        max_steps=max_steps,
        models=models or None,
        priority=priority,
    )
    text, api_key = _with_keys(folder, lambda keys: keys.add(name, limits, time.time()))
    if as_json:
        click.echo(
            json.dumps({"name": name, "id": api_key.id, "key": text, "webhook_secret": api_key.webhook_secret})
        )
    else:
        click.echo(f"key             {text}\nwebhook secret  {api_key.webhook_secret}")


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def list_(folder: Path, as_json: bool) -> None:
    """List the names, states and limits of all keys. The keys themselves are not stored."""
    found = _with_keys(folder, lambda keys: keys.all())
    if as_json:
        shown = [
            {
                "name": api_key.name,
                "id": api_key.id,
                "created": api_key.created,
                "revoked": api_key.revoked,
                **api_key.limits.as_json(),
            }
            for api_key in found
        ]
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "id", "created", "state", "limits", box=None)
    for api_key in found:
        limits = {name: value for name, value in api_key.limits.as_json().items() if value is not None}
        shown_limits = ", ".join(f"{name}={value}" for name, value in limits.items())
        state = "active" if api_key.revoked is None else f"revoked {_day(api_key.revoked)}"
        table.add_row(api_key.name, api_key.id, _day(api_key.created), state, shown_limits)
    Console().print(table)


@click.command("revoke")
@click.argument("name")
@click.pass_obj
def revoke(folder: Path, name: str) -> None:
    """Revoke the key NAME: its next request is rejected; its accepted jobs continue."""
    _with_keys(folder, lambda keys: keys.revoke(name, time.time()))
    click.echo(f"revoked {name}")


@click.command("secret")
@click.argument("name", default="everybody")
@click.pass_obj
def secret(folder: Path, name: str) -> None:
    """Print the secret that signs the webhooks of NAME; without NAME, that of a gateway without keys."""
    click.echo(_with_keys(folder, lambda keys: _secret(keys, name)))


async def _secret(keys: Any, name: str) -> str:
    from imagegen_gateway.keys import ANONYMOUS

    api_key = await (keys.anonymous(time.time()) if name == ANONYMOUS else keys.by_name(name))
    return str(api_key.webhook_secret)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
