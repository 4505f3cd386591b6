"""A terminal for one command, with access to its screen and keyboard."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

import pyte

from tests.e2e.conftest import program

PATIENCE = 60.0
_APPLICATION_COMMAND = re.compile(rb"\x1b_.*?\x1b\\", re.DOTALL)
"""Sequences that terminals ignore unless they know them, and pyte prints."""


class Terminal:
    """Runs a command on a terminal of its own; the command is killed at the end of the context."""

    def __init__(self, *words, columns=100, rows=24):
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._unread = b""
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.settings = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            [program(words[0]), *words[1:]],
            stdin=self._slave, stdout=self._slave, stderr=self._slave, start_new_session=True,
            # The controlling terminal: otherwise Ctrl-C sends no signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    @property
    def lines(self):
        """Lines of the screen."""
        return [line.rstrip() for line in self.screen.display]

    def wait_for(self, *pieces):
        """Wait until the screen contains all of these texts."""
        self._read_until(lambda: all(piece in "\n".join(self.lines) for piece in pieces), pieces)

    def press(self, keys):
        os.write(self._master, keys.encode())

    def wait_for_end(self):
        """Wait until the command exits; return its status."""
        self._read_until(lambda: self.process.poll() is not None, "the end")
        while self._read(0):
            pass
        return self.process.returncode

    def is_restored(self):
        """Return whether the terminal has the settings from before the command."""
        return termios.tcgetattr(self._slave) == self.settings

    def _read_until(self, condition, description):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"no {description} on the screen:\n" + "\n".join(self.lines)
            self._read(0.05)

    def _read(self, seconds):
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        self._unread = _APPLICATION_COMMAND.sub(b"", self._unread + os.read(self._master, 65536))
        whole, begin, rest = self._unread.partition(b"\x1b_")
        self._stream.feed(whole)
        self._unread = begin + rest
        return True
