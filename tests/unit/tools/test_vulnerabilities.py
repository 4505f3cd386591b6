"""The reading of pip-audit's output: what it skips is no success."""

import json

import pytest

from tools import vulnerabilities
from tools.vulnerabilities import FILES, ROOT, UnreachableError, problems

CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "not found"}
HURT = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"]}]}


def output(*packages):
    return json.dumps({"dependencies": packages, "fixes": []})


def test_vulnerabilities_are_named_unless_they_are_accepted():
    assert problems(output(CLEAN), "", {}) == []
    assert problems(output(CLEAN, HURT), "", {}) == ["c 2: PYSEC-1, fixed in 3"]
    assert problems(output(CLEAN, HURT), "", {"CVE-1": "no path of ours"}) == []


def test_a_package_that_was_not_compared_is_a_problem():
    assert problems(output(CLEAN, SKIPPED), "", {}) == ["b: not compared: not found"]


@pytest.mark.parametrize(
    ("text", "errors", "reason"),
    [
        (output(SKIPPED, SKIPPED), "No known vulnerabilities found", "the service knows no package: not found"),
        ("", "Traceback\nConnectionError: no route", "ConnectionError: no route"),
        ("", "", "pip-audit printed nothing"),
    ],
)
def test_a_service_that_compares_nothing_is_unreachable(text, errors, reason):
    with pytest.raises(UnreachableError, match=reason):
        problems(text, errors, {})


@pytest.mark.parametrize(("words", "status"), [([], 2), (["--skip-unreachable"], 0)])
def test_an_unreachable_service_fails_unless_that_is_accepted(words, status, monkeypatch, capsys):
    def fail(file, ignored):
        raise UnreachableError("pypi: no route")

    monkeypatch.setattr(vulnerabilities, "_audit", fail)
    assert vulnerabilities.main(words) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("no service can be reached: pypi: no route")
    assert ("skipped" in line) == (status == 0)


def test_the_files_exist():
    assert all((ROOT / file).is_file() for file in FILES)
