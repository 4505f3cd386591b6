"""Files of settings: what wins, where a value came from, and a line on each that can't be used."""

import tomllib

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from imagegen_common.settings import read_settings

DEFAULTS = {"size": 4, "wait_time": 0.5, "paint": "red", "peer": ("a",), "fast": False, "folder": None}
FILE = """
size = 6
wait_time = 1
colour = "blue"
peer = ["b", "c"]
fast = true
folder = "here"
"""


def test_an_empty_file_leaves_the_defaults(toy):
    assert toy("").exit_code == 0
    assert toy.values == DEFAULTS


def test_a_file_wins_over_the_defaults(toy):
    toy(FILE)
    assert toy.values == {
        "size": 6,
        "wait_time": 1.0,
        "paint": "blue",
        "peer": ("b", "c"),
        "fast": True,
        "folder": "here",
    }


def test_the_environment_wins_over_a_file_and_a_flag_over_both(toy):
    toy(FILE, OLD_SIZE="7", TOY_FAST="no", TOY_PEER="d e")
    assert (toy.values["size"], toy.values["fast"], toy.values["peer"]) == (7, False, ("d", "e"))
    toy(FILE, "--size", "8", "--no-fast", "--peer", "f", OLD_SIZE="7", TOY_FAST="yes", TOY_PEER="d e")
    assert (toy.values["size"], toy.values["fast"], toy.values["peer"]) == (8, False, ("f",))


def test_click_knows_the_sources(toy, tmp_path, monkeypatch):
    (tmp_path / "toy.toml").write_text(FILE)
    monkeypatch.setenv("OLD_SIZE", "7")
    with toy.command.make_context("toy", ["--config", "toy.toml", "--fast"]) as context:
        source = context.get_parameter_source
        assert source("size") is ParameterSource.ENVIRONMENT
        assert source("fast") is ParameterSource.COMMANDLINE
        assert source("paint") is ParameterSource.DEFAULT_MAP
    with toy.command.make_context("toy", []) as context:
        assert context.get_parameter_source("paint") is ParameterSource.DEFAULT


def test_the_environment_may_name_the_file(toy, tmp_path):
    (tmp_path / "other.toml").write_text("size = 2")
    CliRunner().invoke(toy.command, [], env={"TOY_CONFIG": "other.toml"})
    assert toy.values["size"] == 2


def test_each_setting_tells_where_it_is_from(toy):
    toy('\nsize = 6\ncolour="blue"', "--fast", TOY_WAIT_TIME="2")
    assert [line.split() for line in toy.lines] == [
        ["size", "=", "6", "#", "file", "toy.toml:2"],
        ["wait_time", "=", "2.0", "#", "environment", "TOY_WAIT_TIME"],
        ["colour", "=", '"blue"', "#", "file", "toy.toml:3"],
        ["peer", "=", '["a"]', "#", "default"],
        ["fast", "=", "true", "#", "flag"],
        ["#", "folder", "is", "not", "set", "#", "default"],
    ]


def test_of_two_variables_the_one_that_counts_is_told(toy):
    toy("", OLD_SIZE="2", TOY_SIZE="3")
    assert toy.lines[0].split() == ["size", "=", "2", "#", "environment", "OLD_SIZE"]
    toy("", OLD_SIZE="", TOY_SIZE="3")
    assert toy.lines[0].split() == ["size", "=", "3", "#", "environment", "TOY_SIZE"]


def test_what_a_check_prints_is_a_file_of_its_own(toy):
    result = toy(FILE, "--check-config", "--peer", 'a "quoted" name')
    assert result.exit_code == 0
    assert toy.values is None  # the command has not gone on
    assert tomllib.loads(result.output)["peer"] == ['a "quoted" name']
    toy(result.output)
    assert toy.values["peer"] == ('a "quoted" name',)
    assert (toy.values["size"], toy.values["folder"]) == (6, "here")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\nsizes = 4", "toy.toml:2: sizes is not a setting; did you mean size?"),
        ("wait-time = 4", "toy.toml:1: wait-time is not a setting; did you mean wait_time?"),
        ("SIZE = 4", "toy.toml:1: SIZE is not a setting; did you mean size?"),
        ("paint = 'red'", "settings: size, wait_time, colour, peer, fast, folder"),
        ("config = 'x'", "config is not a setting"),
        ("check_config = true", "check_config is not a setting"),
        ("version = true", "version is not a setting"),
        ("[worker]\nsize = 4", "toy.toml:1: worker is a table; settings stand at the top"),
        ("size = '4'", 'toy.toml:1: size must be an integer, got "4"'),
        ("size = 4.0", "size must be an integer, got 4.0"),
        ("size = true", "size must be an integer, got true"),
        ("size = 10", "toy.toml:1: size: expected a whole number, 1 to 9, got 10"),
        ("wait_time = false", "wait_time must be a number, got false"),
        ("colour = 'green'", "toy.toml:1: colour: 'green' is not one of 'red', 'blue'"),
        ("colour = 1", "colour must be a string, got 1"),
        ("peer = 'b'", 'peer must be a list, each a string, got "b"'),
        ("peer = ['b', 1]", 'peer must be a list, each a string, got ["b", 1]'),
        ("size = [4]", "size must be an integer, got [4]"),
        ("fast = 1", "fast must be true or false, got 1"),
        ("fast = 'true'", 'fast must be true or false, got "true"'),
        ("size = 1979-05-27", "size must be an integer, got 1979-05-27"),
        ("size = {x = 1}", "size must be an integer, got {'x': 1}"),
        ("size = 4\nsize = 5", "toy.toml: not TOML: Cannot overwrite a value (at "),
        ("size = x", "toy.toml: not TOML: Invalid value (at line 1"),
        ("size = " + "[" * 5000, "toy.toml: not TOML: maximum recursion depth exceeded"),
        ("size = " + "9" * 5000, "toy.toml: not TOML: Exceeds the limit (4300 digits)"),
        ("size = 0x" + "f" * 50_000, "toy.toml:1: size: expected integers of 64 bits"),
        ("peer = [{x = 0x" + "f" * 50_000 + "}]", "toy.toml:1: peer: expected integers of 64 bits"),
        (b"size = 4 # \xff", "toy.toml: not UTF-8: invalid start byte at byte 11"),
    ],
)
def test_a_file_that_can_not_be_used(toy, text, words):
    result = toy(text)
    assert result.exit_code == 2
    assert words in result.output.splitlines()[-1]
    assert toy.values is None


def test_a_path_with_a_null_character_is_an_error_of_its_setting(tmp_path):
    command = click.Command("toy", params=[click.Option(["--file"], type=click.Path(exists=True))])
    path = tmp_path / "toy.toml"
    path.write_text('file = "a\\u0000"')
    with pytest.raises(click.UsageError, match=r"toy\.toml:1: file: embedded null byte"):
        read_settings(path, command, click.Context(command))


def test_what_the_environment_hides_is_checked_too(toy):
    assert "got 10" in toy("size = 10", "--size", "4", OLD_SIZE="3").output


def test_a_file_that_is_not_there(toy):
    result = CliRunner().invoke(toy.command, ["--config", "no/such.toml"])
    assert result.exit_code == 2
    assert "--config: can't read no/such.toml: No such file or directory" in result.output
    assert "can't read .: Is a directory" in CliRunner().invoke(toy.command, ["--config", "."]).output


def test_a_wrong_variable_is_named(toy):
    result = toy("", OLD_SIZE="many")
    assert result.exit_code == 2
    assert "size (environment OLD_SIZE): expected a whole number, 1 to 9, got 'many'" in result.output
    assert "fast (environment TOY_FAST): 'perhaps' is not a valid boolean." in toy("", TOY_FAST="perhaps").output
    assert "error: --size: expected" in toy("", "--size", "many").output


def test_what_is_wrong_together_is_told_with_its_origins(toy):
    result = toy("size = 5", TOY_WAIT_TIME="1")
    words = "goes with --wait-time (size: file toy.toml:1, wait_time: environment TOY_WAIT_TIME)"
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith(f"{words}; see toy --help")
    assert toy("", "--size", "5").output.splitlines()[-1].endswith("goes with --wait-time; see toy --help")


def test_a_path_that_is_no_text_can_be_shown(toy):
    result = toy("", "--folder", "\udcff", "--check-config")
    assert result.exit_code == 0
    assert r'folder = "\udcff"' in result.output


def test_a_check_ends_with_2_too(toy):
    assert toy("size = 5", "--check-config").exit_code == 2


def test_help_and_version_need_no_good_file(toy):
    assert CliRunner().invoke(toy.command, ["--help"], env={"TOY_CONFIG": "no/such"}).exit_code == 0
    assert CliRunner().invoke(toy.command, ["--version"], env={"TOY_CONFIG": "no/such"}).exit_code == 0
