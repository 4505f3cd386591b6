"""The registry of dispatch strategies."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from imagegen_broker.cli import main
from imagegen_broker.scheduling import strategies
from imagegen_broker.scheduling.strategies import STRATEGIES

ROOT = Path(__file__).parents[3]

TOY = '''
from imagegen_broker.scheduling.strategies.base import OrderedStrategy

class LastName(OrderedStrategy):
    """Chooses the worker whose name comes last in the alphabet."""

    name = "last-name"

    def key(self, worker):
        return tuple(-ord(letter) for letter in worker.name)
'''
USE_TOY = """
import sys
import imagegen_broker.scheduling
imagegen_broker.scheduling.__path__.insert(0, sys.argv[1])
from click.testing import CliRunner
from imagegen_broker.cli import main
from tests.unit.broker.bench import Bench

bench = Bench(strategy="last-name").past_grace()
for name in ("a", "z", "m"):
    bench.ready(name, capacity=1)
bench.submit(1)
bench.submit(2)
print([len(bench.works(name)) for name in ("a", "m", "z")])
print(bench.core.statistics(bench.now).strategy)
print(CliRunner().invoke(main, ["--strategy", "last-name", "--check-config"]).exit_code)
print("last-name" in CliRunner().invoke(main, ["--help"]).output)
"""


def test_a_new_strategy_needs_one_new_file_and_no_other_change(tmp_path):
    folder = tmp_path / "strategies"
    folder.mkdir()
    for file in Path(strategies.__file__).parent.glob("*.py"):
        (folder / file.name).write_text(file.read_text())
    (folder / "last_name.py").write_text(TOY)
    command = [sys.executable, "-c", USE_TOY, str(tmp_path)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == ["[0, 1, 1]", "last-name", "0", "True"]


def test_each_strategy_is_in_a_file_of_its_name():
    files = {strategy.__module__.rpartition(".")[2] for strategy in STRATEGIES.values()}
    assert files == {name.replace("-", "_") for name in STRATEGIES}
    assert set(STRATEGIES) == {"round-robin", "queue-depth", "least-wait"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_command_and_its_configuration_file_offer_each_strategy(name):
    (option,) = [option for option in main.params if option.name == "strategy"]
    assert sorted(option.type.choices) == sorted(STRATEGIES)
    comment = re.search(r"((?:# .*\n)+)strategy = ", (ROOT / "configs/broker.toml").read_text())[1]
    assert f'"{name}"' in comment
