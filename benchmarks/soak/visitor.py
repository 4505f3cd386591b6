"""A client process that comes, asks for some images with the blocking client, and goes."""

import random
import sys
from pathlib import Path

import click

from benchmarks.soak.counts import Counts
from benchmarks.soak.requests import Ask, Judge, WrongError, _plain
from imagegen_client import Client
from imagegen_protocol import ImagegenError


@click.command()
@click.option("--broker", "brokers", multiple=True, required=True)
@click.option("--requests", type=int, default=20)
@click.option("--seed", type=int, default=0)
@click.option("--report", type=click.Path(path_type=Path), required=True)
@click.option("--rude", is_flag=True, help="Say it when everything is sent, then wait to be killed.")
def main(brokers: tuple[str, ...], requests: int, seed: int, report: Path, rude: bool) -> None:
    """Make some images and leave."""
    source, judge, counts = random.Random(seed), Judge(), Counts()
    asks = [_plain(source) for _ in range(requests)]
    client = Client(list(brokers))
    if rude:
        for ask in asks:
            client.submit(**ask.options)
        sys.stdout.write("sent\n")
        sys.stdout.flush()
        sys.stdin.read()
    with client:
        _map(client, asks, judge, counts)
    counts.write(report)


def _map(client: Client, asks: list[Ask], judge: Judge, counts: Counts) -> None:
    counts.sent["visitor"] += len(asks)
    answered = 0
    try:
        for ask, result in zip(asks, client.map(ask.options for ask in asks), strict=True):
            answered += 1
            judge.check(ask, result)
            counts.ended["visitor: answered"] += 1
    except WrongError as error:
        counts.find_wrong(str(error))
    except ImagegenError as error:
        for _ in range(len(asks) - answered):
            counts.lose(f"visitor: {error!r}")


if __name__ == "__main__":
    main()
