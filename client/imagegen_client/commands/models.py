"""`imagegen models`: what the fleet can draw with."""

import json
from collections.abc import Mapping
from typing import Any, Unpack

import click

from imagegen_client.commands.options import Connection, broker_options, open_client


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@broker_options
def command(as_json: bool, **connection: Unpack[Connection]) -> None:
    """Show the models that the fleet serves, and the workers of each.

    The default is what a request takes that names none. A worker is warm for a model that it has loaded; the
    others load it first.

    \b
    Examples:
      imagegen models
      imagegen models --json | jq -r '.[].model'
    """
    with open_client(connection) as client:
        models = served(client.stats(connection["connect_timeout"]))
    if as_json:
        click.echo(json.dumps(models, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from imagegen_client.tables import models_table

    Console().print(models_table(models))


def served(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models of a broker's statistics, the default first, with the workers that serve each."""
    default = statistics.get("default_model")
    gpus = statistics.get("per_gpu_stats", [])
    # The default may have no worker for now; it is waited for.
    names = {*statistics.get("models", []), *([default] if default else [])}
    return [
        {
            "model": name,
            "default": name == default,
            "workers": [_worker(gpu, name) for gpu in gpus if name in gpu.get("models", [])],
        }
        for name in sorted(names, key=lambda name: (name != default, name))
    ]


def _worker(gpu: Mapping[str, Any], model: str) -> dict[str, Any]:
    return {
        **{name: gpu.get(name) for name in ("worker", "host", "gpu_id", "state")},
        "warm": model in gpu.get("warm_models", []),
    }
