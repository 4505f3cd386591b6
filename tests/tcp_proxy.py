"""A TCP proxy in a thread: a slow link, and a proxy that accepts and closes while its target does not listen.

docker-proxy, `ssh -L` and HAProxy accept and close: a client sees a connection that breaks, never a refused one.
"""

import collections
import contextlib
import selectors
import socket
import struct
import threading
import time

_PIECE = 65536
_LINK_SECONDS = 0.05
"""Seconds for which a limited link may be occupied before its sender must wait, as at a router."""
_SOCKET_BUFFER = 8192
"""Size of the socket buffers in front of a limited link: what waits there delays later messages."""
_MAX_QUEUED = 4 * 1024 * 1024


class _Direction:
    """What one end of a connection sends to the other: a queue of pieces, each with the time of its delivery."""

    def __init__(self, name, source, sink):
        self.name, self.source, self.sink = name, source, sink
        self.pieces = collections.deque()
        self.queued = 0
        self.free_at = 0.0
        self.ended = self.blocked = False


class TcpProxy:
    """Forwards `endpoint` to the ZeroMQ endpoint `target`; a context manager.

    `rates` has the bytes per second `up` to the target and `down` from it: None for no limit, 0 for a link that
    looks connected but on which nothing passes. Each byte takes `latency` seconds longer.
    """

    def __init__(self, target, *, up=None, down=None, latency=0.0):
        self.target = target
        self.rates = {"up": up, "down": down}
        self.latency = latency
        self.accepted = 0
        """Connections accepted so far."""
        self.forwarded = 0
        """Connections for which the target accepted one too."""
        self.bytes = {"up": 0, "down": 0}
        """Bytes forwarded so far."""
        self._resets = {}
        """Number of bytes after which to break all connections, by direction."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        if up is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._wake_read, self._wake_write = socket.socketpair()
        self._from = {}
        """The direction that starts at each socket."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._commands = []
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def reset_all(self):
        """Break all connections with a reset, on both sides."""
        self._do(self._reset_all)

    def reset_after(self, direction, count):
        """Break all connections with a reset after so many further bytes `up` or `down`: in a frame's middle."""
        self._do(lambda: self._resets.__setitem__(direction, count))

    def set_rates(self, **rates):
        """Change the bytes per second `up` or `down`."""
        self._do(lambda: self.rates.update(rates))

    def close(self):
        """Close everything."""
        self._do(None)
        self._thread.join()

    def _do(self, command):
        self._commands.append(command)
        self._wake_write.send(b"x")

    # ---- the thread --------------------------------------------------------------------------------------------

    def _run(self):
        while True:
            for key, mask in self._selector.select(self._prepare()):
                if key.fileobj is self._wake_read:
                    self._wake_read.recv(_PIECE)
                elif key.fileobj is self._listener:
                    self._accept()
                elif mask & selectors.EVENT_READ and key.fileobj in self._from:
                    self._read(self._from[key.fileobj])
            self._deliver()
            while self._commands:
                command = self._commands.pop(0)
                if command is None:
                    self._end()
                    return
                command()

    def _prepare(self):
        """Set what to wait for; return the seconds until something else is due, None for nothing."""
        now = time.monotonic()
        times = []
        for source, direction in self._from.items():
            mask = 0
            rate = self.rates[direction.name]
            if not direction.ended and rate != 0 and direction.queued < _MAX_QUEUED:
                if rate is None or direction.free_at - now < _LINK_SECONDS:
                    mask |= selectors.EVENT_READ
                else:
                    times.append(direction.free_at - _LINK_SECONDS)
            if self._from[direction.sink].blocked:
                mask |= selectors.EVENT_WRITE
            if direction.pieces and not direction.blocked:
                times.append(direction.pieces[0][0])
            self._watch(source, mask)
        return None if not times else max(0.0, min(times) - now)

    def _watch(self, each, mask):
        known = self._selector.get_map().get(each)
        if known is None and mask:
            self._selector.register(each, mask)
        elif known is not None and not mask:
            self._selector.unregister(each)
        elif known is not None and known.events != mask:
            self._selector.modify(each, mask)

    def _accept(self):
        near, _ = self._listener.accept()
        self.accepted += 1
        host, _, port = self.target.removeprefix("tcp://").rpartition(":")
        far = socket.socket()
        far.settimeout(5)
        try:
            if self.rates["down"] is not None:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
            far.connect((host, int(port)))
        except OSError:
            far.close()
            near.close()
            return
        self.forwarded += 1
        for each in (near, far):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._from[near] = _Direction("up", near, far)
        self._from[far] = _Direction("down", far, near)

    def _read(self, direction):
        rate = self.rates[direction.name]
        try:
            data = direction.source.recv(
                _PIECE if rate is None else max(1, min(_PIECE, int(rate * _LINK_SECONDS)))
            )
        except BlockingIOError:
            return
        except OSError:
            self._drop(direction.source)  # a reset ends the pair
            return
        if not data:
            direction.ended = True  # what is on its way still arrives
            return
        now = time.monotonic()
        direction.free_at = max(direction.free_at, now) + (len(data) / rate if rate else 0.0)
        direction.pieces.append((direction.free_at + self.latency, data))
        direction.queued += len(data)

    def _deliver(self):
        now = time.monotonic()
        for direction in list(self._from.values()):
            direction.blocked = False
            try:
                while direction.source in self._from and direction.pieces and direction.pieces[0][0] <= now:
                    self._send(direction)
            except BlockingIOError:
                direction.blocked = True
            except OSError:
                self._drop(direction.source)
            if direction.ended and not direction.pieces and direction.source in self._from:
                self._drop(direction.source)

    def _send(self, direction):
        due, data = direction.pieces.popleft()
        left = self._resets.get(direction.name)
        sent = 0
        try:
            sent = direction.sink.send(data[:left])
        finally:
            direction.queued -= sent
            if sent < len(data):
                direction.pieces.appendleft((due, data[sent:]))
        self.bytes[direction.name] += sent
        if left is not None:
            self._resets[direction.name] = left - sent
            if left == sent:
                del self._resets[direction.name]
                self._reset_all()

    def _drop(self, each):
        direction = self._from.pop(each)
        del self._from[direction.sink]
        for end in (each, direction.sink):
            self._watch(end, 0)
            end.close()

    def _reset_all(self):
        for each in list(self._from):
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while self._from:
            self._drop(next(iter(self._from)))

    def _end(self):
        while self._from:
            self._drop(next(iter(self._from)))
        self._selector.close()
        for each in (self._listener, self._wake_read, self._wake_write):
            each.close()
