"""The check of licenses: expressions, names of classifiers, and exceptions."""

import pytest

from tools.licenses import is_allowed, problems, read_rules

RULES = {"allowed": ["MIT", "BSD-3-Clause", "MIT License"], "exceptions": {"nvidia-*": {"license": "*"}}}


@pytest.mark.parametrize(
    ("license_", "allowed"),
    [
        ("MIT", True),
        ("MIT AND BSD-3-Clause", True),
        ("MIT AND GPL-3.0", False),
        ("GPL-3.0 OR MIT", True),
        ("GPL-3.0 OR LGPL-3.0", False),
        ("MIT AND (GPL-3.0 OR BSD-3-Clause)", True),
        ("MIT License; GNU General Public License (GPL)", False),
        ("UNKNOWN", False),
        ("", False),
        ("mit-like", False),
    ],
)
def test_expressions(license_, allowed):
    assert is_allowed(license_, RULES["allowed"]) is allowed


def test_packages_that_are_not_allowed_are_named():
    packages = [
        {"Name": "good", "Version": "1", "License": "MIT"},
        {"Name": "nvidia_cublas", "Version": "2", "License": "Other/Proprietary License"},
        {"Name": "bad", "Version": "3", "License": "AGPL-3.0"},
    ]
    assert problems(packages, RULES) == ["bad 3: AGPL-3.0"]


def test_an_exception_holds_for_its_license_only():
    rules = {"allowed": [], "exceptions": {"pyte": {"license": "LGPL-3.0"}}}
    assert problems([{"Name": "pyte", "Version": "1", "License": "LGPL-3.0"}], rules) == []
    assert problems([{"Name": "pyte", "Version": "1", "License": "AGPL-3.0"}], rules) == ["pyte 1: AGPL-3.0"]


def test_every_exception_has_a_reason():
    rules = read_rules()
    assert all(each["reason"] and each["license"] for each in rules["exceptions"].values())
    assert not [name for name in rules["allowed"] if "GPL" in name or name == "UNKNOWN"]
