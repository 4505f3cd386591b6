"""`imagegen keygen`: generate a key pair for a broker, a worker or a client."""

from pathlib import Path

import click

from imagegen_cli.terminal import echo
from imagegen_protocol.keys import KeyFileError, generate_keys


@click.command("keygen")
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="FOLDER",
    help="Folder for the files.  [default: the current folder]",
)
def command(name: str, out: Path) -> None:
    """Generate a key pair for a broker, worker or client.

    Writes the public key NAME.key and the secret key NAME.key_secret, and prints their paths.

    A broker needs its own secret key and two folders with the .key files of the clients and workers that may
    connect. Each client and worker needs its own secret key and the broker's .key file.

    \b
    Examples:
      imagegen keygen broker --out keys
      imagegen keygen alice --out keys/clients
      imagegen keygen gpu-host-1 --out keys/workers
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise click.BadParameter(f"expected a file name without a folder, got {name!r}", param_hint="NAME")
    try:
        written = generate_keys(out, name)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from error
    for path in written:
        echo(str(path))
