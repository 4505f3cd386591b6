"""Control characters in text of other peers never reach the terminal."""

import ast
import io
import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from rich.live import Live
from rich.text import Text

import imagegen_cli
from imagegen_cli.commands import progress_display
from imagegen_cli.commands.errors import InputError, describe
from imagegen_cli.commands.generation import Outcome, ProgressView
from imagegen_cli.commands.results import ResultWriter
from imagegen_cli.console import EscapingConsole
from imagegen_cli.dashboard.screen import screen
from imagegen_cli.tables import models_table, stats_table
from imagegen_cli.terminal import echo
from imagegen_client.fleet import BrokerStatus, FleetSnapshot
from imagegen_client.models import served
from imagegen_client.progress import Progress
from imagegen_client.transport import _format_fields
from imagegen_protocol import RequestError
from imagegen_protocol.terminal import escape_controls
from tests.statistics import gpu_statistics, statistics_of

HOSTILE = "w\x1b]0;title\x07\x1b[2J\x9b31m\u202eabc\r"
SHOWN = r"w\u001b]0;title\u0007\u001b[2J\u009b31m\u202eabc\u000d"
ALLOWED = {"\n", "\t"}


def assert_harmless(text):
    dangerous = {one for one in text if unicodedata.category(one) in ("Cc", "Cs")} - ALLOWED
    assert not dangerous, ascii(dangerous)
    assert "\u202e" not in text


def printed(renderable, width=300):
    out = io.StringIO()
    EscapingConsole(file=out, width=width).print(renderable)
    return out.getvalue()


# ---- escaping ----------------------------------------------------------------------------------------------


def test_control_characters_are_written_as_in_json():
    assert escape_controls(HOSTILE) == SHOWN
    assert escape_controls("plain\ttext\n ä 日本 🦊 👨\u200d👩") == "plain\ttext\n ä 日本 🦊 👨\u200d👩"
    assert_harmless(escape_controls("".join(map(chr, range(0x3000)))))
    assert escape_controls("\ud800") == r"\ud800"


def test_escaped_json_is_read_as_before():
    line = json.dumps({"worker": HOSTILE, "prompt": "ä\u2028"}, ensure_ascii=False)
    assert_harmless(escape_controls(line))
    assert json.loads(escape_controls(line)) == json.loads(line)


def test_a_label_keeps_its_style(capsys):
    echo(HOSTILE, label=click.style("ok", fg="green"))
    echo(HOSTILE, err=True)
    captured = capsys.readouterr()
    assert captured.out.endswith(f"{SHOWN}\n")
    assert captured.err == f"{SHOWN}\n"


WRITERS = {"click.echo", "click.secho", "print", "Console", "sys.stdout.write", "sys.stderr.write"}


def test_only_three_modules_write_to_the_terminal():
    """All others write through `echo` and `EscapingConsole`, and print images; `__main__` works without click."""
    for path in sorted(Path(imagegen_cli.__file__).parent.rglob("*.py")):
        if path.name not in ("terminal.py", "console.py", "inline_images.py", "__main__.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
            assert not calls & WRITERS, path


# ---- writers -----------------------------------------------------------------------------------------------


def test_names_in_tables_are_escaped():
    worker = gpu_statistics(
        worker=HOSTILE, host=HOSTILE, gpu_id=0, device=HOSTILE, models=[HOSTILE], state="ready", capacity=1
    )
    statistics = statistics_of(
        per_gpu_stats=[worker], models=[HOSTILE], default_model=HOSTILE, strategy=HOSTILE, num_gpus=1
    )
    snapshot = FleetSnapshot(1.0, (BrokerStatus("tcp://a:1", statistics),))
    for renderable in (
        stats_table(statistics),
        models_table(served(statistics)),
        screen(None, snapshot, {}, width=300),
    ):
        text = printed(renderable)
        assert_harmless(text)
        assert r"\u001b" in text


def test_a_live_display_keeps_its_own_control_sequences():
    out = io.StringIO()
    console = EscapingConsole(file=out, force_terminal=True, width=300, legacy_windows=False)
    with Live(Text(HOSTILE), console=console, auto_refresh=False):
        pass
    assert r"w\u001b]0;title" in out.getvalue()
    assert "\x1b]" not in out.getvalue()
    assert "\x1b[?25l" in out.getvalue(), "the cursor is hidden"


@pytest.mark.parametrize("as_json", [False, True])
def test_lines_of_results_and_errors_are_escaped(capsys, as_json):
    request = SimpleNamespace(index=0, prompt="x", seed=1, where="")
    result = SimpleNamespace(
        seed=1,
        seeds=[1],
        worker=HOSTILE,
        model=HOSTILE,
        total_seconds=1.0,
        batch_size=1,
        attempt=1,
        parameters={},
        warnings=[HOSTILE],
    )
    output = SimpleNamespace(write=lambda *_: [Path("a.png")])
    writer = ResultWriter(output, ProgressView(), quiet=False, as_json=as_json)
    writer.write(Outcome(request, "id", result=result))
    writer.write(Outcome(request, "id", error=RequestError(HOSTILE)))
    captured = capsys.readouterr()
    assert_harmless(captured.out + captured.err)
    assert r"\u001b" in captured.out
    assert r"\u001b" in captured.err


def test_errors_of_the_command_are_escaped(capsys):
    InputError("--out", HOSTILE).show()
    echo(describe(RequestError(HOSTILE)), err=True)
    assert_harmless(capsys.readouterr().err)


def test_the_reason_of_waiting_requests_is_escaped():
    waiting = Progress(0, 0, state="waiting", reason=HOSTILE)
    running = {0: progress_display.RequestState("x", since=0.0, progress=waiting)}
    text = printed(progress_display.render(progress_display.DisplayState(1, 0.0, running=running), 1.0))
    assert_harmless(text)
    assert r"\u001b" in text


def test_log_lines_of_the_client_are_escaped():
    assert _format_fields({"reason": HOSTILE, "broker": "a b"}) == f' reason={SHOWN} broker="a b"'
