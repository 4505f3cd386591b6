"""Shared by all unit tests."""

import logging
import sys
import threading

import pytest


@pytest.fixture
def clean_logging():
    """Put everything back that `imagegen_common.logs.set_up` replaces."""
    loggers = [logging.getLogger(name) for name in (None, "imagegen_worker", "imagegen.broker")]
    levels, handlers = [logger.level for logger in loggers], loggers[0].handlers[:]
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    yield
    logging.captureWarnings(False)
    for handler in set(loggers[0].handlers) - set(handlers):
        handler.close()
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
