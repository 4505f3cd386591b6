"""The files in `configs/`: every setting of the commands is there, with its default."""

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import imagegen_broker.cli
import imagegen_gateway.cli
import imagegen_worker.cli
from imagegen_common.settings import options_of

CONFIGS = Path(__file__).parents[2] / "configs"
COMMANDS = {
    "broker": imagegen_broker.cli.main,
    "gateway": imagegen_gateway.cli.main,
    "worker": imagegen_worker.cli.main,
}


@pytest.fixture(params=sorted(COMMANDS))
def role(request, monkeypatch):
    for variable in (
        "MAX_BATCH_SIZE",
        "MAX_BATCH_WAIT_TIME",
        "ENABLE_BATCHING",
        "GPU_LOAD_BALANCE_STRATEGY",
        "GPU_IDS",
    ):
        monkeypatch.delenv(variable, raising=False)
    return request.param


def defaults(command):
    """What the command works with when nothing is said, by the keys of a file."""
    with command.make_context("command", []) as context:
        return {key: context.params[option.name] for key, option in options_of(command).items()}


def active(role):
    return tomllib.loads((CONFIGS / f"{role}.toml").read_text())


def examples(role):
    """The settings that are commented out: `#key = value`, without a space."""
    text = (CONFIGS / f"{role}.toml").read_text()
    return tomllib.loads("\n".join(re.findall(r"^#([a-z_]+ = .*)$", text, re.MULTILINE)))


def test_every_setting_is_there_and_no_other(role):
    assert sorted([*active(role), *examples(role)]) == sorted(options_of(COMMANDS[role]))


def test_every_setting_has_the_variable_of_its_name(role):
    assert {key: option.name for key, option in options_of(COMMANDS[role]).items() if option.name != key} == {}


def test_every_value_is_the_default(role):
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in active(role).items()}
    unset = (None, ())
    expected = {key: value for key, value in defaults(COMMANDS[role]).items() if value not in unset}
    assert {key: value for key, value in given.items() if value not in unset} == expected


def test_every_setting_has_its_line_of_explanation(role):
    lines = (CONFIGS / f"{role}.toml").read_text().splitlines()
    settings = [number for number, line in enumerate(lines) if re.match(r"#?[a-z_]+ = ", line)]
    assert [lines[number] for number in settings if not lines[number - 1].startswith("# ")] == []


def test_it_loads(role):
    result = CliRunner().invoke(COMMANDS[role], ["--config", str(CONFIGS / f"{role}.toml"), "--check-config"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.findall(r"# (?:flag|environment.*)$", result.stdout, re.MULTILINE) == []
    assert len(re.findall(r"# file .*\.toml:\d+$", result.stdout, re.MULTILINE)) == len(active(role))


def test_the_examples_have_the_right_types(role, tmp_path):
    """A key or a folder of an example is not there, and a value may be of no use here: types alone are seen."""
    for key in examples(role):
        line = re.search(rf"^#({key} = .*)$", (CONFIGS / f"{role}.toml").read_text(), re.MULTILINE)
        (tmp_path / "one.toml").write_text(line[1])
        result = CliRunner().invoke(COMMANDS[role], ["--config", str(tmp_path / "one.toml"), "--check-config"])
        assert "one.toml:1: " not in result.output.splitlines()[-1], result.output
