"""The `imagegen` command: imports subcommands on demand and turns errors into a line and an exit status."""

from importlib import import_module
from typing import Any

import click

from imagegen_cli.commands.errors import describe
from imagegen_cli.terminal import echo
from imagegen_common.command_line import OneLineErrors, SuggestingGroup
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
"""Module of each subcommand, imported when it is used; its `command` is the click command."""

EXIT_FAILED = 1
EXIT_NO_BROKER = 3
EXIT_INTERRUPTED = 130


class Commands(OneLineErrors, SuggestingGroup):
    """A group that imports its commands when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; errors become a line on stderr and an exit status."""
        try:
            return super().invoke(ctx)
        except BrokerUnreachableError as error:
            status, line = EXIT_NO_BROKER, describe(error)
        except ImagegenError as error:
            status, line = EXIT_FAILED, describe(error)
        except KeyboardInterrupt:
            status, line = EXIT_INTERRUPTED, "error: interrupted; unfinished requests were cancelled"
        echo(line, err=True)
        ctx.exit(status)


@click.group("imagegen", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="imagegen-fleet", prog_name="imagegen")
def main() -> None:
    """Generate images on an imagegen fleet, and inspect, benchmark and run the fleet.

    \b
    Examples:
      imagegen generate "a yellow star on a purple background" --out star.png --seed 7
      imagegen generate --prompts prompts.txt --out images --pattern "{index:03}-{prompt}.png"
      imagegen models
      imagegen top
      imagegen up
      imagegen bench --burst 50 --json
      imagegen doctor

    \b
    Exit status:
      0    success
      1    a request failed (stderr: error: CODE: MESSAGE), or doctor found a problem
      2    invalid option, argument or input file; nothing was sent
      3    no broker could be reached
      130  interrupted
    """
