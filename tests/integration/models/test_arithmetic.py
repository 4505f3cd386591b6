"""Effects of MKL's mode on images: docs/decisions/0013-bit-equality.md."""

import os
import re
import subprocess
import sys

import pytest
import torch

from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.config import LoadOptions, WorkerConfig
from imagegen_worker.devices.mkl import MODE, VARIABLE
from tests.equality import PIXEL_TOLERANCE
from tools.fleet import Fleet

PRODUCTS = """
import itertools, os
from imagegen_worker.devices.mkl import set_reproducible_mode
print(set_reproducible_mode(os.environ)[1])
import torch

def at(tensor, offset):
    "Return a copy that begins so many floats after a multiple of 64 bytes."
    memory = torch.empty(tensor.numel() + 32)
    begin = -memory.data_ptr() // 4 % 16 + offset
    return memory[begin : begin + tensor.numel()].view(tensor.shape).copy_(tensor)

torch.set_num_threads(1)
torch.manual_seed(0)
for rows, inner, outer in itertools.product((1, 2, 7, 64), (32, 37, 320), (16, 37, 320)):
    x, weight = torch.randn(2, rows, inner), torch.randn(outer, inner)
    expected = torch.nn.functional.linear(at(x, 0), at(weight, 0))
    for offsets in itertools.product((0, 1, 2, 8), repeat=2):
        if not torch.equal(torch.nn.functional.linear(*map(at, (x, weight), offsets)), expected):
            print("alignment", rows, inner, outer, offsets)
    if not torch.equal(torch.nn.functional.linear(x.flip(0), weight).flip(0), expected):
        print("position", rows, inner, outer)
"""


def run(*arguments, mode=""):
    """Run Python with a mode of MKL; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, VARIABLE: mode},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=150,
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch has no MKL")
def test_in_the_reproducible_mode_products_depend_on_neither_alignment_nor_position():
    assert run("-c", PRODUCTS) == ["MKL's reproducible mode was set"]


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_in_mkls_default_mode_an_image_equals_the_stock_image_within_rounding(saved, family):
    (difference,) = run("-m", "tests.integration.models.compare", saved(family), family)
    assert int(difference) <= PIXEL_TOLERANCE


def test_each_supervised_worker_sets_the_mode(tmp_path):
    with Fleet(tmp_path, {VARIABLE: ""}) as fleet:
        words = ("--device", "cpu", "--torch-threads", "1", "--max-batch-size", "1", "--deterministic")
        command = ["imagegen-worker", "--broker", f"ipc://{tmp_path}/none", "--name", "w", "--gpu", "0,1", *words]
        fleet.spawn("w", command)
        log = tmp_path / "w.log"
        line = rf"info MKL's reproducible mode was set {VARIABLE}={MODE} worker=(w-\d)"
        fleet.wait_until(lambda: sorted(re.findall(line, log.read_text())) == ["w-0", "w-1"], "two modes logged")


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_deterministic_worker_without_mkl_logs_a_warning(monkeypatch, caplog, deterministic):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    options = LoadOptions(device="cpu", threads=1, deterministic=deterministic)
    LoadedPipeline(WorkerConfig().model_source.location, "shapes", options).close()
    assert ("this torch has no MKL" in caplog.text) == deterministic
