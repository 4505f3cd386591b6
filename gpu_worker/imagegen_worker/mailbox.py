"""The two ways between the socket thread and the device thread: commands in, events out."""

import contextlib
import queue
import socket
from collections import deque

from imagegen_worker.core.events import Command, EngineEvent


class Died:
    """The device thread has ended by an exception; nothing will be made any more."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Mailbox:
    """Commands for the device thread; events from it (and from the encoders), which wake the socket thread.

    Any thread may `post`; the socket thread polls `fileno()` for reading and then calls `events()`.
    """

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._events: deque[EngineEvent | Died] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)

    def put(self, command: Command) -> None:
        """Give the device thread a command."""
        self._commands.put(command)

    def take(self, timeout: float | None) -> Command | None:
        """Return the next command; wait for it at most `timeout` seconds (None: for ever), then return None."""
        try:
            if timeout is not None and timeout <= 0:
                return self._commands.get_nowait()
            return self._commands.get(timeout=timeout)
        except queue.Empty:
            return None

    def post(self, event: EngineEvent | Died) -> None:
        """Tell the socket thread something, and wake it."""
        self._events.append(event)
        # A full pipe wakes the reader as well as one more byte; at a closed one nobody listens any more.
        with contextlib.suppress(OSError):
            self._wake_out.send(b"\0")

    def events(self) -> list[EngineEvent | Died]:
        """Return what was posted, in order, and reset the wake-up."""
        with contextlib.suppress(BlockingIOError):  # the pipe is empty: that is what is wanted
            while self._wake_in.recv(4096):
                continue
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def fileno(self) -> int:
        """Return the descriptor that is readable when something was posted."""
        return self._wake_in.fileno()

    def wakeup_fd(self) -> int:
        """Return the descriptor into which `signal.set_wakeup_fd` may write."""
        return self._wake_out.fileno()

    def close(self) -> None:
        """Free the descriptors. What is posted afterwards is lost."""
        self._wake_in.close()
        self._wake_out.close()
