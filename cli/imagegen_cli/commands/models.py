"""`imagegen models`: list the models of the fleet."""

import json
from typing import Unpack

import click

from imagegen_cli.commands.options import Connection, broker_options, open_client
from imagegen_cli.terminal import echo


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the parameter ranges of each model.")
@broker_options
def command(as_json: bool, **connection: Unpack[Connection]) -> None:
    """List the models that the fleet serves.

    Shows the default size and steps of each model, and its workers. The default model serves requests that
    name none. A worker is warm for a model that it has loaded; other workers load the model first. In the
    JSON output, takes is null until a worker has loaded the model.

    \b
    Examples:
      imagegen models
      imagegen models --json | jq -r '.[].model'
      imagegen models --json | jq '.[0].takes.schedulers'
    """
    with open_client(connection) as client:
        models = client.models(connection["connect_timeout"])
    if as_json:
        echo(json.dumps(models, indent=2, ensure_ascii=False))
        return
    from imagegen_cli.console import EscapingConsole
    from imagegen_cli.tables import models_table

    EscapingConsole().print(models_table(models))
