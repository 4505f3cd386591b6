"""The configuration of Prometheus: `promtool` takes it, and each alert is seen to fire and to keep still."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.promtool import needs_promtool, promtool

FOLDER = Path(__file__).parents[3] / "configs" / "prometheus"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
RULE_TESTS = sorted((FOLDER / "tests").glob("*.yml"))


def alerts():
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def cases():
    files = [yaml.safe_load(path.read_text()) for path in RULE_TESTS]
    return [case for file in files for test in file["tests"] for case in test["alert_rule_test"]]


@needs_promtool
def test_the_configuration_is_right(tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "targets.json").write_text("[]")
    status, said = promtool("check", "config", tmp_path / "prometheus.yml")
    assert (status, "WARNING" in said, "FAILED" in said) == (0, False, False), said


@needs_promtool
def test_rules_have_no_lint():
    status, said = promtool("check", "rules", "--lint-fatal", *RULES)
    assert status == 0, said


@needs_promtool
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path):
    status, said = promtool("test", "rules", path)
    assert status == 0, said


def test_every_alert_is_seen_to_fire_and_to_keep_still():
    fired = {case["alertname"] for case in cases() if case["exp_alerts"]}
    kept_still = {case["alertname"] for case in cases() if not case["exp_alerts"]}
    assert {rule["alert"] for rule in alerts()} == fired == kept_still


def test_every_alert_says_how_bad_it_is_and_what_it_is():
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"].keys() == {"summary"}, rule["alert"]
