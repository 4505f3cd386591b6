"""The benchmark of peers: its report is complete. Speeds are not judged.

Only imagegen's own part runs by default. The installations of the peers are large: `pytest -m peers` runs them.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest
from click.testing import CliRunner

from benchmarks.peers import report, running
from benchmarks.peers.__main__ import NAMES, main
from benchmarks.peers.scenarios import SCENARIOS, ideal, quick
from benchmarks.peers.setups.device import VARIABLE, Account, Device
from benchmarks.peers.setups.load import deaths, rates, split


def test_the_ideal_times_are_those_of_the_best_distribution():
    assert ideal(SCENARIOS["burst"], 50) == pytest.approx(1.7)  # 13 + 13 + 12 + 12, two batches each
    assert ideal(SCENARIOS["mixed"], 200) == pytest.approx(3.6)  # 28 on each slow one, 72 on each fast one
    assert ideal(quick(SCENARIOS["mixed"]), 200) == pytest.approx(0.36)
    assert ideal(SCENARIOS["burst"], 1) == pytest.approx(0.3)


def test_unequal_requests_have_the_same_total_of_images():
    assert sum(split(200)) == 200
    assert split(8) == [1, 2, 3, 2]


def test_slots_of_dead_processes_are_reused(tmp_path):
    work = replace(SCENARIOS["kill"], folder=str(tmp_path))
    with closing(Device(work)) as first, closing(Device(work)) as second:
        assert (first.slot, second.slot) == (0, 1)
        first.close()
        with closing(Device(work)) as third:
            assert third.slot == 0
    account = Account(work)
    account.note("begun", [1, 2, 2])
    account.note("ended", [1, 2])
    assert running.repeated(tmp_path) == {"begun_again": 1, "ended_again": 0}


def test_a_run_leaves_no_process_or_folder(tmp_path):
    wait = [sys.executable, "-c", "print(flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, VARIABLE: str(tmp_path)}
    with subprocess.Popen(wait, env=environment, start_new_session=True, **pipes) as child:
        child.stdout.readline()  # it has started and has its environment
        running.end_all(str(tmp_path))
        assert child.wait(60) == -signal.SIGKILL


def test_a_failed_peer_is_in_the_report(tmp_path):
    noop = {"1": rates([0.1, 0.2], 1.0), "64": rates([0.5], 0.1)}
    kill = deaths(Counter({"answer": 190, "silence": 4, "500": 6}), 3.0) | {"ended_again": 2}
    ours = {"noop": [noop], "kill": kill, "burst": {"seconds": [2.0]}}
    ideals = {"burst": 1.7, "mixed": 3.6}
    table = {
        "imagegen": report.figures(ours, ours, ideals),
        "mosec": report.figures({"noop": [{}]}, ours, ideals),
    }
    assert table["imagegen"]["rate_1"] == 1.0
    assert table["imagegen"]["burst"] == pytest.approx(2.0 / 1.7)
    assert (table["imagegen"]["lost"], table["imagegen"]["errors"]) == (10, 6)
    assert table["mosec"] == {}
    fields = {"note": "", "version": "1"}
    peers = {
        "imagegen": {"title": "imagegen", "failures": {}, **fields},
        "mosec": {"title": "mosec", "failures": {"burst": "not done after 120 s"}, **fields},
    }
    whole = {"ratios": table, "peers": peers, "machine": "a machine", "commit": "1234"}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nto go\n{report.END}\nafter\n")
    report.insert(whole, page)
    text = page.read_text()
    assert "mosec failed at `burst`: not done after 120 s" in text
    assert "to go" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="no place"):
        report.insert(whole, page)


def bench(tmp_path, *options):
    arguments = ["--quick", "--out", str(tmp_path), *options]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads((tmp_path / "peers.json").read_text())


def test_imagegen_answers_all_requests(tmp_path):
    results = bench(tmp_path, "--only", "imagegen")
    own, table = results["told"]["imagegen"], results["ratios"]["imagegen"]
    assert results["peers"]["imagegen"]["failures"] == {}
    assert (own["kill"]["answered"], table["lost"]) == (200, 0)
    assert own["kill"]["begun_again"] >= own["kill"]["ended_again"] >= 0
    assert table["rate_64"] == 1.0
    assert min(table[key] for key in ("burst", "alike", "unequal")) >= 1.0
    assert (tmp_path / "logs" / "imagegen" / "kill" / "broker.log").stat().st_size > 0


@pytest.mark.peers
@pytest.mark.timeout(1800)
def test_all_peers_are_installed_and_answer(tmp_path, request):
    if "peers" not in request.config.option.markexpr:
        pytest.skip("pytest -m peers installs and tries the peers")
    results = bench(tmp_path)
    assert {name: fields["failures"] for name, fields in results["peers"].items()} == {name: {} for name in NAMES}
    assert all(len(row) == len(report.COLUMNS) for row in results["ratios"].values())
