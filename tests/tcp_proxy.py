"""A TCP proxy in a thread: a slow link, a link that breaks, or a proxy whose target does not listen.

docker-proxy, `ssh -L` and HAProxy accept and close while their target is away: a client sees a connection that
breaks, never a refused one. "Up" is the direction to the target, "down" the one from it.
"""

import selectors
import socket
import struct
import threading
import time
from collections import deque
from math import inf

_READ_BYTES = 65536
_SLICE_SECONDS = 0.02
"""A limited direction reads what it transfers in this time at once."""
_BUFFER_BYTES = 16 * 1024
"""Size of the receive buffers of limited links: what a sender has sent has left it, or waits for the link."""


class _Pipe:
    """One direction of one connection."""

    def __init__(self, name, source, sink, rate, latency):
        self.name = name
        self.source, self.sink = source, sink
        self.rate, self.latency = rate, latency
        self.next_read = 0.0
        self.queue = deque()
        """Pairs of the time from which data may be sent, and the data."""
        self.ended = False

    def is_due(self, now):
        """Whether there is data to send now."""
        return bool(self.queue) and self.queue[0][0] <= now

    def may_read(self, now):
        """Whether the link has transferred everything before."""
        return not self.ended and self.next_read <= now and not self.is_due(now)

    def wakes_at(self, now):
        """Return the next time at which `is_due` or `may_read` changes by itself."""
        times = [self.next_read] if not self.ended and self.next_read > now else []
        times += [self.queue[0][0]] if self.queue and self.queue[0][0] > now else []
        return min(times, default=inf)

    def read(self, now):
        """Read from the source; return the number of bytes."""
        data = self.source.recv(max(1, int(min(_READ_BYTES, self.rate * _SLICE_SECONDS))))
        if not data:
            self.ended = True
            return 0
        self.next_read = max(now, self.next_read) + len(data) / self.rate
        self.queue.append((self.next_read + self.latency, memoryview(data)))
        return len(data)

    def write(self, most):
        """Send what is due, at most `most` bytes; return the number of bytes."""
        due, data = self.queue.popleft()
        sent = self.sink.send(data[: min(len(data), most)])
        if sent < len(data):
            self.queue.appendleft((due, data[sent:]))
        return sent


class TcpProxy:
    """Forwards `endpoint` to the ZeroMQ endpoint `target`; a context manager.

    `up` and `down` limit the directions, in bytes per second and for each connection; `latency` is in seconds and
    for each direction.
    """

    def __init__(self, target, *, up=inf, down=inf, latency=0.0):
        self.target = target
        self.up, self.down, self.latency = up, down, latency
        self.accepted = 0
        """Connections accepted so far."""
        self.forwarded = 0
        """Connections for which the target accepted one too."""
        self.passed = {"up": 0, "down": 0}
        """Bytes forwarded in each direction, on all connections."""
        self.refuses = False
        """Whether new connections are accepted and closed at once."""
        self._reset_at = {"up": inf, "down": inf}
        self._listener = socket.socket()
        if min(up, down) < inf:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._wake_read, self._wake_write = socket.socketpair()
        self._from, self._to = {}, {}
        """The pipes by the socket that they read, and by the socket that they write."""
        self._silent = []
        """The sockets of half-open connections."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._commands = deque()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def connections(self):
        """Number of connections that are forwarded now."""
        return len(self._from) // 2

    def reset_all(self):
        """Break all connections with a reset, on both sides."""
        self._do(self._reset_all)

    def reset_after(self, *, up=inf, down=inf):
        """Reset all connections once so many more bytes have passed in a direction, in the middle of a frame."""
        self._do(lambda: self._reset_at.update(up=self.passed["up"] + up, down=self.passed["down"] + down))

    def half_open_all(self):
        """Forward nothing more on the present connections, and close nothing: no side notices."""
        self._do(self._half_open_all)

    def close(self):
        """Close everything."""
        self._do(None)
        self._thread.join()

    def _do(self, command):
        self._commands.append(command)
        self._wake_write.send(b"x")

    # ---- the thread -----------------------------------------------------------------------------------------

    def _run(self):
        while True:
            now = time.monotonic()
            wakes_at = min((pipe.wakes_at(now) for pipe in self._from.values()), default=inf)
            self._watch(now)
            timeout = None if wakes_at == inf else max(0.0, wakes_at - now)
            for key, events in self._selector.select(timeout):
                if key.fileobj is self._wake_read:
                    self._wake_read.recv(_READ_BYTES)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._forward(key.fileobj, events)
            while self._commands:
                command = self._commands.popleft()
                if command is None:
                    self._end()
                    return
                command()

    def _watch(self, now):
        """Wait for each socket that may be read, or written, now."""
        for each in list(self._from):
            events = selectors.EVENT_READ if self._from[each].may_read(now) else 0
            events |= selectors.EVENT_WRITE if self._to[each].is_due(now) else 0
            key = self._selector.get_map().get(each.fileno())
            if key is not None and key.events == events:
                continue
            if key is not None:
                self._selector.unregister(each)
            if events:
                self._selector.register(each, events)

    def _accept(self):
        near, _ = self._listener.accept()
        self.accepted += 1
        if self.refuses or (far := self._connect()) is None:
            near.close()
            return
        self.forwarded += 1
        for each in (near, far):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, source, sink, rate in (("up", near, far, self.up), ("down", far, near, self.down)):
            self._from[source] = self._to[sink] = _Pipe(name, source, sink, rate, self.latency)

    def _connect(self):
        host, _, port = self.target.removeprefix("tcp://").rpartition(":")
        far = socket.socket()
        if self.down < inf:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        far.settimeout(5)
        try:
            far.connect((host, int(port)))
        except OSError:
            far.close()
            return None
        return far

    def _forward(self, each, events):
        if each not in self._from:
            return  # dropped in this round
        now = time.monotonic()
        try:
            if events & selectors.EVENT_WRITE and self._to[each].is_due(now):
                self._write(self._to[each])
            if events & selectors.EVENT_READ and each in self._from and self._from[each].may_read(now):
                self._from[each].read(now)
                if self._from[each].is_due(now):
                    self._write(self._from[each])
        except BlockingIOError:
            return
        except OSError:
            self._drop(each)  # a reset ends the connection as a normal end does
            return
        for pipes in (self._from, self._to):
            if each in pipes and pipes[each].ended and not pipes[each].queue:
                self._drop(each)

    def _write(self, pipe):
        name = pipe.name
        self.passed[name] += pipe.write(self._reset_at[name] - self.passed[name])
        if self.passed[name] >= self._reset_at[name]:
            self._reset_at = {"up": inf, "down": inf}
            self._reset_all()

    def _drop(self, each):
        other = self._from.pop(each).sink
        del self._from[other], self._to[each], self._to[other]
        for end in (each, other):
            if end.fileno() in self._selector.get_map():
                self._selector.unregister(end)
            end.close()

    def _reset_all(self):
        for each in list(self._from):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._drop_all()

    def _half_open_all(self):
        for each in self._from:
            if each.fileno() in self._selector.get_map():
                self._selector.unregister(each)
            self._silent.append(each)
        self._from.clear()
        self._to.clear()

    def _drop_all(self):
        while self._from:
            self._drop(next(iter(self._from)))

    def _end(self):
        self._drop_all()
        self._selector.close()
        for each in (self._listener, self._wake_read, self._wake_write, *self._silent):
            each.close()
