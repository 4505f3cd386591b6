"""Faults planted in the product and in a target: the runners find them."""

import importlib.util

import pytest

from imagegen_broker.core.request_table import RequestTable
from tests.fuzz import __main__ as fuzz
from tests.fuzz.findings import Findings, HangError, hang_guard
from tests.fuzz.hypothesis_runner import check
from tests.fuzz.target import PLANTED
from tests.fuzz.targets import TARGETS

CHECKED = {
    "header_from_client": "imagegen_protocol.frames._diagnose",
    "header_from_worker": "imagegen_protocol.frames._diagnose",
    "header_to_client": "imagegen_protocol.frames._diagnose",
    "header_to_worker": "imagegen_protocol.frames._diagnose",
    "request_body": "imagegen_protocol.request._check_inputs",
    "capabilities": "tests.fuzz.wire.merge",
    "statistics": "imagegen_protocol.statistics._read",
    "endpoints": "imagegen_protocol.endpoints.Endpoint",
    "image_size": "imagegen_protocol.images._read_jpeg_size",
    "worker_input": "imagegen_worker.images.decoding._fit",
    "result_image": "PIL.ImageFile.ImageFile.load",
    "preview": "PIL.ImageFile.ImageFile.load",
    "client_input": "imagegen_client.input_images._check_length",
    "gateway_upload": "imagegen_protocol.images._check_chunks",
    "base64_image": "imagegen_gateway.input_images.binascii",
    "png_metadata": "PIL.PngImagePlugin.PngInfo.add_text",
    "json_body": "imagegen_gateway.core.json_bounds._check",
    "form_body": "imagegen_gateway.bodies._parts",
    "gateway_body": "imagegen_gateway.bodies._parse_form",
    "gateway_head": "imagegen_gateway.access._split",
    "worker_metrics": "imagegen_gateway.gpu_metrics.text_string_to_metric_families",
    "webhook_url": "imagegen_gateway.core.addresses.is_allowed",
    "http_connection": "imagegen_common.http_server.is_local_name",
    "settings_file": "imagegen_common.settings._problem",
    "key_file": "imagegen_protocol.keys._check",
    "prompts_file": "imagegen_cli.prompts._read_object",
    "file_names": "tests.fuzz.files.sanitize",
    "log_line": "imagegen_common.logs._escape",
    "broker_core_least_wait": "imagegen_broker.core.request_table.RequestTable.dispatch",
    "broker_core_queue_depth": "imagegen_broker.core.request_table.RequestTable.dispatch",
    "broker_core_round_robin": "imagegen_broker.core.request_table.RequestTable.dispatch",
    "worker_core": "imagegen_worker.core.requests.parse_request",
    "client_core": "imagegen_client.core.check_answer",
}
"""A function of the product that each target calls; in the test it fails as no caller expects."""


class PlantedError(BaseException):
    """A fault that no code handles."""


def fail(*_, **__):
    """Fail."""
    raise PlantedError


class _Failing:
    def __getattr__(self, name):
        raise PlantedError


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_finds_a_planted_fault(name, monkeypatch):
    monkeypatch.setattr(CHECKED[name], _Failing() if CHECKED[name].endswith("binascii") else fail)
    with pytest.raises(PlantedError):
        check(TARGETS[name], 60, shrink=False)


def test_hypothesis_finds_a_planted_fault():
    with pytest.raises(ZeroDivisionError, match="planted"):
        check(PLANTED, 500)


def test_a_hang_is_a_finding(tmp_path):
    with pytest.raises(HangError):
        run_forever()
    findings = Findings(tmp_path)
    for data in (b"a", b"b", b"c"):
        findings.run(lambda data: data[:1] == b"a" or fail_at(data), data)
    assert (findings.runs, len(findings), len(list(tmp_path.iterdir()))) == (3, 1, 2)


def run_forever():
    with hang_guard(1):
        while True:
            pass


def fail_at(_):
    """Raise an exception, always at the same place."""
    raise ValueError("test")


def test_a_broker_that_forgets_its_requests_is_found(monkeypatch):
    """A fault that raises nothing by itself: the accounts of the broker do not agree."""
    original = RequestTable.dispatch

    def dispatch(self, request, worker, now):
        original(self, request, worker, now)
        self.bytes += 1

    monkeypatch.setattr(RequestTable, "dispatch", dispatch)
    with pytest.raises(AssertionError):
        check(TARGETS["broker_core_round_robin"], 200, shrink=False)


@pytest.mark.parametrize("runner", fuzz.RUNNERS)
def test_the_long_run_saves_findings_and_fails(runner, tmp_path, capsys):
    if importlib.util.find_spec(runner) is None:
        pytest.skip(f"{runner} is not installed: `make fuzz` installs it where it can")
    words = ["--runner", runner, "--folder", str(tmp_path), "--minutes", "0.05", "--target"]
    assert fuzz.main([*words, "planted"]) == 1
    output = capsys.readouterr().out
    edges = output.splitlines()[2].split()[3]
    assert runner != "atheris" or int(edges) > 2, "the code is instrumented"
    assert "1 findings: inputs and tracebacks in" in output
    (found,) = [path for path in (tmp_path / "planted").iterdir() if path.suffix != ".txt"]
    assert found.read_bytes().startswith(b"seed")
    assert "ZeroDivisionError: planted" in found.with_suffix(".txt").read_text()
    assert fuzz.main([*words, "harmless"]) == 0
    assert "0 findings" in capsys.readouterr().out
