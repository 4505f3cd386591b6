"""`imagegen models`: what the fleet can draw with."""

import json
from typing import Unpack

import click

from imagegen_cli.commands.options import Connection, broker_options, open_client


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@broker_options
def command(as_json: bool, **connection: Unpack[Connection]) -> None:
    """Show the models that the fleet serves, what each takes, and its workers.

    The default is what a request takes that names none. A worker is warm for a model that it has loaded; the
    others load it first. --json has all that a model takes: `takes`, null until a worker has loaded it.

    \b
    Examples:
      imagegen models
      imagegen models --json | jq -r '.[].model'
      imagegen models --json | jq '.[0].takes.schedulers'
    """
    with open_client(connection) as client:
        models = client.models(connection["connect_timeout"])
    if as_json:
        click.echo(json.dumps(models, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from imagegen_cli.tables import models_table

    Console().print(models_table(models))
