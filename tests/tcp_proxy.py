"""A TCP proxy in a thread: it forwards while its target listens, and accepts and closes while it does not.

docker-proxy, `ssh -L` and HAProxy behave so: a client sees a connection that breaks, never a refused one.
"""

import selectors
import socket
import struct
import threading

_CHUNK = 65536


class TcpProxy:
    """Forwards `endpoint` to the ZeroMQ endpoint `target`; a context manager."""

    def __init__(self, target):
        self.target = target
        self.accepted = 0
        """Connections accepted so far."""
        self.forwarded = 0
        """Connections for which the target accepted one too."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._wake_read, self._wake_write = socket.socketpair()
        self._peers = {}
        """Each socket and the one that gets what it sends."""
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

    def close(self):
        """Close everything."""
        self._do(None)
        self._thread.join()

    def _do(self, command):
        self._commands.append(command)
        self._wake_write.send(b"x")

    def _run(self):
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake_read:
                    self._wake_read.recv(_CHUNK)
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._peers:
                    self._forward(key.fileobj)
            while self._commands:
                command = self._commands.pop(0)
                if command is None:
                    self._end()
                    return
                command()

    def _accept(self):
        near, _ = self._listener.accept()
        self.accepted += 1
        host, _, port = self.target.removeprefix("tcp://").rpartition(":")
        try:
            far = socket.create_connection((host, int(port)), 5)
        except OSError:
            near.close()
            return
        self.forwarded += 1
        self._peers[near], self._peers[far] = far, near
        for each in (near, far):
            self._selector.register(each, selectors.EVENT_READ)

    def _forward(self, source):
        try:
            data = source.recv(_CHUNK)
            if data:
                self._peers[source].sendall(data)
                return
        except OSError:
            pass  # a reset ends the pair as a normal end does
        self._drop(source)

    def _drop(self, each):
        other = self._peers.pop(each)
        del self._peers[other]
        for end in (each, other):
            self._selector.unregister(end)
            end.close()

    def _reset_all(self):
        for each in list(self._peers):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while self._peers:
            self._drop(next(iter(self._peers)))

    def _end(self):
        while self._peers:
            self._drop(next(iter(self._peers)))
        self._selector.close()
        for each in (self._listener, self._wake_read, self._wake_write):
            each.close()
