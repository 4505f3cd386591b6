"""The client library and its command where only the base requirements are installed."""

import subprocess
import sys

import pytest

BLOCKER = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("click", "rich"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code, *arguments], capture_output=True, text=True, timeout=60
    )


def test_the_library_generates_without_click_and_rich(broker, worker):
    code = """
import imagegen_client
with imagegen_client.Client(sys.argv[1]) as client:
    print(client.generate("a red circle", seed=7).image.size)
"""
    done = run(code, broker.frontend_endpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(4, 2)\n", "")


def test_every_module_of_the_library_imports_without_click_and_rich():
    code = """
import importlib, pkgutil, imagegen_client, imagegen_protocol
for package in (imagegen_client, imagegen_protocol):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["--help"], ["generate", "x"]])
def test_the_command_names_the_extra_that_it_needs(words):
    done = run("from imagegen_cli.__main__ import main\nmain()\n", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the imagegen command needs the Python package click, which is not installed: "
        "pip install 'imagegen-fleet[cli]'\n"
    )
