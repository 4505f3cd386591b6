"""The file that tells Prometheus where the workers are."""

import json
import os
import stat
import threading

import pytest
from click.testing import CliRunner

from imagegen_broker.cli import main
from imagegen_broker.prometheus_targets import TargetsFile, target_groups
from imagegen_protocol.messages import Ready


def worker(name, host, http):
    return Ready(
        worker_id=name.encode().ljust(16, b"\0"),
        name=name,
        host=host,
        gpu_id=0,
        device="cpu",
        backend="b",
        models=["m"],
        capacity=1,
        max_batch_size=1,
        http=http,
    )


def test_one_group_for_each_host():
    workers = [
        worker("c", "two", "two:9102"),
        worker("b", "one", "10.0.0.1:9102"),
        worker("a", "one", "10.0.0.1:9101"),
        worker("d", "three", None),
    ]
    assert target_groups(workers, "one") == [
        {"targets": ["10.0.0.1:9101", "10.0.0.1:9102"], "labels": {"host": "one"}},
        {"targets": ["two:9102"], "labels": {"host": "two"}},
    ]


def test_workers_that_come_and_go_faster_than_the_disk_writes_are_not_queued(tmp_path, monkeypatch):
    written, free = [], threading.Event()

    def write(file, groups):
        written.append(groups)
        return free.wait(60)

    monkeypatch.setattr(TargetsFile, "_write", write)
    file = TargetsFile(tmp_path / "workers.json")
    for number in range(100):
        file.show([worker("a", "h", f"h:{number}")])
    free.set()
    file.close()
    assert len(written) <= 3
    assert written[-1] == [{"targets": ["h:99"], "labels": {"host": "h"}}]


@pytest.mark.parametrize("address", ["127.0.0.1:9101", "[::1]:9101", "localhost:9101"])
def test_another_hosts_loopback_is_no_target(address):
    assert target_groups([worker("a", "there", address)], "here") == []
    assert len(target_groups([worker("a", "here", address)], "here")) == 1


def test_the_last_word_is_written_before_the_end(tmp_path):
    file = TargetsFile(tmp_path / "workers.json")
    file.show([worker("a", "h", "h:1")])
    file.show([worker("a", "h", "h:1"), worker("b", "h", "h:2")])
    file.close()
    assert json.loads((tmp_path / "workers.json").read_text()) == [
        {"targets": ["h:1", "h:2"], "labels": {"host": "h"}}
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["workers.json"]


def test_prometheus_may_read_it_whatever_the_umask_of_the_service(tmp_path):
    usual = os.umask(0o077)
    try:
        file = TargetsFile(tmp_path / "workers.json")
        file.show([])
        file.close()
    finally:
        os.umask(usual)
    assert stat.S_IMODE((tmp_path / "workers.json").stat().st_mode) == 0o644


def test_a_write_that_fails_is_tried_again(tmp_path, monkeypatch):
    written = threading.Event()
    write, failures = TargetsFile._write, [False, False]

    def flaky(self, groups):
        if failures:
            return failures.pop()
        done = write(self, groups)
        written.set()
        return done

    monkeypatch.setattr(TargetsFile, "_write", flaky)
    file = TargetsFile(tmp_path / "workers.json", retry_seconds=0.001)
    file.show([worker("a", "h", "h:1")])
    assert written.wait(30)
    file.close()
    assert "h:1" in (tmp_path / "workers.json").read_text()


def test_a_folder_that_is_gone_is_told_and_kills_nothing(tmp_path, caplog):
    file = TargetsFile(tmp_path / "gone" / "workers.json")
    file.show([])
    file.close()
    assert "writing Prometheus targets failed" in caplog.text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("workers.txt", "must end in .json"),
        ("no/such/w.json", "is not a writable folder"),
        ("folder.json", "it is a folder"),
    ],
)
def test_a_path_that_is_of_no_use_is_refused(tmp_path, path, words):
    (tmp_path / "folder.json").mkdir()
    result = CliRunner().invoke(main, ["--prometheus-targets", str(tmp_path / path), "--check-config"])
    assert result.exit_code == 2
    assert "--prometheus-targets" in result.output
    assert words in result.output
