"""`imagegen stats`: print a broker's statistics."""

from typing import Unpack

import click

from imagegen_cli.commands.options import Connection, broker_options, open_client
from imagegen_cli.terminal import echo
from imagegen_protocol.statistics import to_json


@click.command("stats")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as HTTP /stats of the broker does.")
@broker_options
def command(as_json: bool, **connection: Unpack[Connection]) -> None:
    """Print the GPUs with their load, the queue and the totals.

    \b
    Examples:
      imagegen stats
      imagegen stats --json | jq '.per_gpu_stats[].current_queue_depth'
      watch imagegen stats
    """
    with open_client(connection) as client:
        statistics = client.stats(connection["connect_timeout"])
    if as_json:
        echo(to_json(statistics).decode())
        return
    from imagegen_cli.console import EscapingConsole
    from imagegen_cli.tables import stats_table

    EscapingConsole().print(stats_table(statistics))
