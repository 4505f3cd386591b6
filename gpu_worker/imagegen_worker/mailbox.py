"""Queues between the main thread and the device thread: commands in, events out."""

import contextlib
import queue
import socket
from collections import deque

from imagegen_worker.core.events import Command, EngineEvent


class EngineDied:
    """The device thread has ended with an exception."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Mailbox:
    """Commands to the device thread, and events from it and the encoders, which wake the main thread.

    Any thread may call `post`; the main thread polls `fileno()` for reading and then calls `events()`.
    """

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._events: deque[EngineEvent | EngineDied] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)

    def put(self, command: Command) -> None:
        """Queue a command for the device thread."""
        self._commands.put(command)

    def take(self, timeout: float | None) -> Command | None:
        """Return the next command, or None after `timeout` seconds without one (None: wait without limit)."""
        try:
            if timeout is not None and timeout <= 0:
                return self._commands.get_nowait()
            return self._commands.get(timeout=timeout)
        except queue.Empty:
            return None

    def post(self, event: EngineEvent | EngineDied) -> None:
        """Queue an event for the main thread, and wake it."""
        self._events.append(event)
        # A full socket wakes the reader just as well; a closed one has no reader any more.
        with contextlib.suppress(OSError):
            self._wake_out.send(b"\0")

    def events(self) -> list[EngineEvent | EngineDied]:
        """Return the posted events in order, and reset the wake-up."""
        with contextlib.suppress(BlockingIOError):  # the socket is empty
            while self._wake_in.recv(4096):
                continue
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def fileno(self) -> int:
        """Return the descriptor that is readable after `post`."""
        return self._wake_in.fileno()

    def wakeup_fd(self) -> int:
        """Return the descriptor for `signal.set_wakeup_fd`."""
        return self._wake_out.fileno()

    def close(self) -> None:
        """Close the descriptors. Events posted afterwards are lost."""
        self._wake_in.close()
        self._wake_out.close()
