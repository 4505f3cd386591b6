"""The last line of a test run: what is missing, and how to install it."""

import pytest

from tests import programs

pytest_plugins = ("pytester",)


def test_the_line_counts_tests_and_names_each_program_once():
    reasons = [
        f"Skipped: {programs.reason('prometheus')}",
        f"Skipped: {programs.reason('ip', 'iptables')}",
        "Skipped: no CUDA device",
    ]
    assert programs.summary(reasons) == (
        "2 tests were skipped: ip, iptables, prometheus are not installed. "
        "Install with: sudo apt-get install iproute2 iptables prometheus"
    )


def test_nothing_is_said_where_nothing_is_missing():
    assert programs.summary(["Skipped: no CUDA device"]) is None


def test_other_reasons_that_contain_the_same_words_are_left_alone():
    assert programs.summary(["Skipped: atheris is not installed: `make fuzz` installs it where it can"]) is None


def test_what_debian_does_not_package_has_a_command_of_its_own():
    assert programs.install_command(["Ray", "jq"]) == "sudo apt-get install jq && make test-ray"


def test_packages_of_npm_need_node(monkeypatch):
    monkeypatch.setattr(programs, "installed", lambda program: program != "node")
    command = "npm install --prefix examples/node"
    assert programs.install_command([programs.NODE_PACKAGES]) == f"sudo apt-get install npm && {command}"


def test_a_program_without_a_known_command_is_refused():
    with pytest.raises(KeyError):
        programs.needs("no-such-program")
    with pytest.raises(KeyError):
        programs.reason("no-such-program")


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n2")], ids=["one process", "two processes"])
def test_a_run_ends_with_the_line(pytester, monkeypatch, options):
    monkeypatch.setenv("PYTHONPATH", str(programs.ROOT))
    pytester.makeconftest("from tests.conftest import pytest_terminal_summary")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        """
        from tests.programs import needs, require

        @needs("curl", "jq")
        def test_one():
            pass

        def test_two():
            require("curl")

        def test_three():
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=1, skipped=2)
    line = "2 tests were skipped: curl, jq are not installed. Install with: sudo apt-get install curl jq"
    result.stdout.fnmatch_lines([line])
