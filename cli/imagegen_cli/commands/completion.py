"""`imagegen completion`: print a shell completion script."""

import click
from click.shell_completion import get_completion_class

from imagegen_cli.terminal import echo

PROGRAMS = ("imagegen", "imagegen-broker", "imagegen-worker", "imagegen-gateway")


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.argument("program", type=click.Choice(PROGRAMS), default="imagegen")
def command(shell: str, program: str) -> None:
    """Print a shell completion script.

    The script completes the options of PROGRAM (default: imagegen) in SHELL, and names of models from the broker.

    \b
    Examples:
      eval "$(imagegen completion bash)"                        in ~/.bashrc
      eval "$(imagegen completion zsh imagegen-worker)"         in ~/.zshrc
      imagegen completion fish > ~/.config/fish/completions/imagegen.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    # The script calls the program for completions, so it does not depend on the commands.
    echo(kind(click.Command(program), {}, program, variable).source())
