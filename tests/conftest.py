"""What holds for all tests."""

import os
import signal

from hypothesis import settings

from imagegen_worker.devices.mkl import MODE, VARIABLE

# MKL reads it once, at its first call. Tests of equal bits need it (see `tests/equality.py`); processes under test
# start without it, as users' do. An own value, even an empty one, stays.
os.environ.setdefault(VARIABLE, MODE)

# A job in the background ignores Ctrl-C, and so would every process that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine may take a second over anything.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
