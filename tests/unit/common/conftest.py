"""Shared by the tests of what the commands have in common."""

import click
import pytest
from click.testing import CliRunner

from imagegen_common.command_line import IntegerRange
from imagegen_common.settings import SettingsCommand, effective, end_check, settings_options, usage_error


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A command with an option of every kind; `toy(text, *arguments, **environment)` runs it with a file."""

    @click.command("toy", cls=SettingsCommand, context_settings={"auto_envvar_prefix": "TOY"})
    @settings_options
    @click.option("--size", type=IntegerRange(1, 9), default=4, envvar="OLD_SIZE")
    @click.option("--wait-time", type=float, default=0.5)
    @click.option("--colour", "paint", type=click.Choice(["red", "blue"]), default="red")
    @click.option("--peer", multiple=True, default=("a",))
    @click.option("--fast/--no-fast", default=False)
    @click.option("--folder", type=click.Path())
    @click.version_option("1")
    @click.pass_context
    def command(context, size, **others):
        if size == 5:
            raise usage_error(context, ValueError("--size must not be 5, and goes with --wait-time"))
        end_check(context)
        run.values = {"size": size, **others}
        run.lines = effective(context)

    def run(text, *arguments, **environment):
        run.values = run.lines = None
        path = tmp_path / "toy.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return CliRunner().invoke(command, ["--config", "toy.toml", *arguments], env=environment)

    monkeypatch.chdir(tmp_path)
    run.command = command
    return run
