"""The command `imagegen`: finds the subcommand, and turns errors into one line and an exit code."""

from importlib import import_module
from typing import Any

import click

from imagegen_cli.commands.errors import describe
from imagegen_protocol import BrokerUnreachableError, ImagegenError

COMMANDS = {
    "bench": "imagegen_cli.commands.bench",
    "completion": "imagegen_cli.commands.completion",
    "doctor": "imagegen_cli.commands.doctor",
    "generate": "imagegen_cli.commands.generate",
    "keygen": "imagegen_cli.commands.keygen",
    "models": "imagegen_cli.commands.models",
    "stats": "imagegen_cli.commands.stats",
    "top": "imagegen_cli.commands.top",
    "up": "imagegen_cli.commands.up",
}
"""Each module has its command as `command`; imported late, since nobody should wait for what is not used."""

EXIT_FAILED = 1
EXIT_NO_BROKER = 3
EXIT_INTERRUPTED = 130


class Commands(click.Group):
    """A group that imports its commands when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, for the help."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, or None when there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; whatever it ends with becomes a line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except BrokerUnreachableError as error:
            status, line = EXIT_NO_BROKER, describe(error)
        except ImagegenError as error:
            status, line = EXIT_FAILED, describe(error)
        except KeyboardInterrupt:
            status, line = EXIT_INTERRUPTED, "error: interrupted: what was unfinished is given up"
        click.echo(line, err=True)
        ctx.exit(status)


@click.group("imagegen", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="imagegen-fleet", prog_name="imagegen")
def main() -> None:
    """Ask an imagegen fleet for pictures, look at it, load it.

    \b
    Examples:
      imagegen generate "a yellow star on a purple background" --out star.png --seed 7
      imagegen generate --prompts prompts.txt --out pictures --pattern "{index:03}-{prompt}.png"
      imagegen models
      imagegen top
      imagegen up
      imagegen bench --burst 50 --json
      imagegen doctor

    \b
    Exit status:
      0    all went well
      1    a request ended in an error (a line on stderr each: error: CODE: MESSAGE); doctor: a problem
      2    the command line, or a file that it names, is wrong; nothing was asked
      3    no broker could be reached
      130  interrupted
    """
