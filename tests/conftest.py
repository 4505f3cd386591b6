"""What holds for all tests."""

import signal

from hypothesis import settings

# A job in the background ignores Ctrl-C, and so would every process that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine may take a second over anything.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
