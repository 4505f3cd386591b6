"""MKL's reproducible mode, which `--deterministic` needs on a CPU: see docs/decisions/0013-bit-equality.md.

MKL reads the mode from the environment at its first call and never again. So nothing here may import torch.
"""

import logging
import sys
from collections.abc import MutableMapping

from imagegen_common.logs import Line

VARIABLE = "MKL_CBWR"
MODE = "AVX2,STRICT"
"""MKL's own value; on a processor that lacks this code path MKL uses AUTO, which is reproducible too."""


def set_reproducible_mode(environment: MutableMapping[str, str]) -> Line:
    """Set MKL's reproducible mode unless the operator has set one; return the log line that says so.

    `environment` is `os.environ`, before torch is imported.
    """
    own = environment.get(VARIABLE)
    if own:  # MKL treats an empty value as none
        return logging.INFO, "MKL's reproducible mode was set by the environment", {VARIABLE: own}
    environment[VARIABLE] = MODE
    if "torch" in sys.modules:
        text = "MKL's reproducible mode was set after torch was imported, and may have no effect"
        return logging.WARNING, text, {VARIABLE: MODE}
    return logging.INFO, "MKL's reproducible mode was set", {VARIABLE: MODE}
