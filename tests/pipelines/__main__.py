"""Measure tiny pipelines and write their rows into the table of docs/models.md.

python -m tests.pipelines            all of them: about half an hour
python -m tests.pipelines NAME ...   only these
"""

import os
import sys
import traceback

from imagegen_worker.devices.mkl import MODE, VARIABLE

os.environ.setdefault(VARIABLE, MODE)

import torch

from tests.pipelines import table
from tests.pipelines.catalogue import TINY, is_available
from tests.pipelines.measure import measure


def main(names):
    """Measure the pipelines with these names, or all."""
    torch.set_num_threads(1)
    failed = 0
    for name in names or TINY:
        if not is_available(TINY[name]):
            print(f"{name}: {TINY[name].needs} is not installed")
            continue
        try:
            line = table.measured(name, measure(TINY[name]))
        except Exception:  # noqa: BLE001 - the other pipelines are measured
            failed += 1
            print(f"{name}: FAILED")
            traceback.print_exc(limit=-4)
            continue
        print(line.markdown(), flush=True)
        table.write([line])
    table.write([])
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
