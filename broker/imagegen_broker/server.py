"""The broker's shell: one single-threaded poll loop that moves frames between two ROUTER sockets and the core.

It decodes only the header of each message; bodies and images pass through uncopied. It makes no decisions.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import RLock
from typing import Self

import zmq

from imagegen_broker.access import Access, AllowList
from imagegen_broker.core.broker import BrokerCore
from imagegen_broker.core.counters import Histogram
from imagegen_broker.core.events import (
    FLUSH,
    Action,
    KeyRevoked,
    LogEvent,
    Malformed,
    ReceivedFromClient,
    ReceivedFromWorker,
    Role,
    Send,
    SendFailed,
    SendToClient,
    StateChange,
)
from imagegen_broker.core.records import Settings
from imagegen_broker.core.snapshot import View, status
from imagegen_broker.tracing import Traces
from imagegen_common.logs import log_all
from imagegen_common.notify import SystemdNotifier
from imagegen_protocol.errors import ProtocolError, UnauthorizedError
from imagegen_protocol.frames import decode_from_client, decode_from_worker, encode
from imagegen_protocol.limits import MAX_CHUNK_BYTES, MAX_FRAMES, MAX_PRIORITY
from imagegen_protocol.messages import Error, Message, Ready, Result
from imagegen_protocol.sockets import enable_keepalive
from imagegen_protocol.statistics import Statistics

_log = logging.getLogger("imagegen.broker")

_MAX_MESSAGES_PER_ROUND = 256
"""Messages read from one socket before the other socket is read and the core flushes."""
_CLIENT_SEND_QUEUE = 512
"""Messages that may wait for one slow client. Beyond it the broker drops them and sends answers again later. It is
twice the number of requests that the client's `map` keeps in flight."""

_HANDSHAKE_MS = 10_000
"""Maximum duration of a handshake: a connection that starts none occupies a file descriptor for this time."""

_MAX_COPIED_BYTES = 4096
"""Smaller frames are copied, which is cheaper than keeping a reference to the frame of the socket."""
# As plain numbers: combining two flags of an enumeration takes longer than sending a frame.
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)
_SNDMORE_NOBLOCK = _SNDMORE | _NOBLOCK

Frames = list[bytes | zmq.Frame]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An immutable view of the core, for HTTP."""

    view: View
    ready: bool
    queue_wait: Histogram
    duration: Histogram
    held_by_client: tuple[int, ...]
    """Number of requests of each client."""

    @classmethod
    def of(cls, core: BrokerCore, now: float) -> Self:
        """Copy the state of the core. This is the only work that a view costs the loop."""
        counters = core.table.counters
        return cls(
            core.view(now),
            core.is_ready(now),
            counters.queue_wait.copy(),
            counters.duration.copy(),
            tuple([len(client.requests) for client in core.clients.by_id.values()]),
        )

    @property
    def statistics(self) -> Statistics:
        """The fields of `/stats`; computed at each access, on the calling thread."""
        return self.view.statistics()


class Server:
    """Two bound sockets and the loop that serves them. `run` blocks until `stop` is called from any thread."""

    def __init__(
        self,
        settings: Settings,
        frontend: str,
        backend: str,
        access: Access | None = None,
        notifier: SystemdNotifier | None = None,
        show_workers: Callable[[Sequence[Ready]], None] | None = None,
        traces: Traces | None = None,
    ) -> None:
        """Bind both endpoints; with `access`, only for peers whose keys are on its lists.

        The loop feeds the watchdog of `notifier`. It calls `show_workers` with the registered workers when one has
        registered or left, but not before the broker has been running for long enough to know them.
        Raises `zmq.ZMQError` with the endpoint in its text if one can't be bound.
        """
        self._context = zmq.Context()
        self._access = access
        self._notifier = SystemdNotifier({}) if notifier is None else notifier
        self._show_workers = show_workers
        self._traces = traces
        self._shown_generation = -1
        if access is not None:
            access.start(self._context)
        self._client_socket = self._router(frontend, _CLIENT_SEND_QUEUE, "clients")
        # Without a limit: a worker is never sent more than its capacity.
        self._worker_socket = self._router(backend, 0, "workers")
        self.frontend_endpoint: str = self._client_socket.get_string(zmq.LAST_ENDPOINT)
        self.backend_endpoint: str = self._worker_socket.get_string(zmq.LAST_ENDPOINT)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        # Reentrant: a signal handler may wake the loop while it closes.
        self._wake_lock = RLock()
        self._closed = False
        self._snapshot_requests: deque[Future[Snapshot]] = deque()
        self._stopping = False
        self._reloading = False
        self.core = BrokerCore(settings, time.monotonic())

    @property
    def wake_fd(self) -> int:
        """File descriptor for `signal.set_wakeup_fd`; a byte written to it wakes the loop."""
        return self._wake_write

    def run(self) -> None:
        """Serve until stopped, then close the sockets."""
        if self._access is not None:
            self._access.report()
        poller = zmq.Poller()
        poller.register(self._client_socket, zmq.POLLIN)
        poller.register(self._worker_socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        try:
            while not self._stopping:
                deadline = min(self.core.next_deadline(), self._notifier.due_at)
                wait = max(0.0, deadline - time.monotonic())
                # Rounded up, so that the loop does not spin during the last millisecond.
                ready = dict(poller.poll(int(wait * 1000) + 1))
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                if self._reloading:
                    self._reload()
                if self._worker_socket in ready:
                    self._read(self._worker_socket, self._read_from_worker, self._allowed("workers"))
                if self._client_socket in ready:
                    self._read(self._client_socket, self._read_from_client, self._allowed("clients"))
                self._perform(self.core.handle(FLUSH, time.monotonic()))
                self._show_registered_workers()
                while self._snapshot_requests:
                    self._answer_snapshot(self._snapshot_requests.popleft())
                self._notifier.tick(time.monotonic(), lambda: status(self.core))
            self._notifier.stopping("ending")
        finally:
            self._close()

    def stop(self) -> None:
        """Make `run` return soon. Safe from any thread and from a signal handler."""
        self._stopping = True
        self._wake()

    def reload(self) -> None:
        """Make the loop read the allow-lists again. Safe from any thread and from a signal handler."""
        self._reloading = True
        self._wake()

    def snapshot(self, timeout: float) -> Snapshot:
        """Return a view of the core, created by the loop. Raises TimeoutError if the loop does not respond."""
        request: Future[Snapshot] = Future()
        self._snapshot_requests.append(request)
        self._wake()
        return request.result(timeout)

    # ---- inside the loop ----------------------------------------------------------------------

    def _answer_snapshot(self, request: Future[Snapshot]) -> None:
        snapshot = Snapshot.of(self.core, time.monotonic())
        if request.set_running_or_notify_cancel():
            request.set_result(snapshot)

    def _show_registered_workers(self) -> None:
        generation = self.core.scheduler.pool.generation
        if self._show_workers is None or self._shown_generation == generation:
            return
        if time.monotonic() >= self.core.dispatching_from:
            self._shown_generation = generation
            self._show_workers([worker.ready for worker in self.core.workers.by_id.values()])

    def _wake(self) -> None:
        with self._wake_lock:
            if self._closed:
                return  # the descriptor's number may have been reused
            try:
                os.write(self._wake_write, b"\0")
            except BlockingIOError:
                _log.debug("the wake pipe is full, so the loop is awake already")

    def _reload(self) -> None:
        self._reloading = False
        if self._access is not None:
            self._access.reload()

    def _allowed(self, role: Role) -> AllowList | None:
        return None if self._access is None else self._access.lists[role]

    def _router(self, endpoint: str, send_queue: int, role: Role) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.ROUTER)
        if self._access is not None:
            self._access.guard(socket, role)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # With a handover the old connection loses its pipe but keeps its descriptor for ever, and the heartbeat
        # timers of libzmq abort the process on it. Peers take a new routing id for each socket instead.
        socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
        socket.setsockopt(zmq.LINGER, 500)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.setsockopt(zmq.SNDHWM, send_queue)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_CHUNK_BYTES)
        # No limit on queued messages: when libzmq resumes reading after the limit, it aborts if the next message
        # is a PING and the peer has reset the connection. A limit on messages would not bound memory anyway.
        socket.setsockopt(zmq.RCVHWM, 0)
        enable_keepalive(socket)
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            if self._access is not None:
                self._access.close()
            self._context.destroy(0)
            raise zmq.ZMQError(error.errno, f"can't bind {endpoint}: {error}") from error
        return socket

    def _read(
        self, socket: "zmq.Socket[bytes]", read: Callable[[bytes, Frames, bytes], None], allowed: AllowList | None
    ) -> None:
        """Read the available messages, up to `_MAX_MESSAGES_PER_ROUND`, and pass each one to `read`.

        A message whose key is no longer allowed is reported to the core instead. Frames are received one by one,
        because `frame.more` is twice as fast as reading the socket's option RCVMORE.
        """
        for _ in range(_MAX_MESSAGES_PER_ROUND):
            try:
                first = socket.recv(_NOBLOCK, copy=allowed is None)
            except zmq.Again:
                return
            peer = first if isinstance(first, bytes) else first.bytes
            frames: Frames = []
            more = True  # a ROUTER puts the peer's id before at least one frame
            while more:
                frame = socket.recv(copy=False)
                more = frame.more
                if len(frames) <= MAX_FRAMES:
                    frames.append(frame.bytes if len(frame) <= _MAX_COPIED_BYTES else frame)
            key = b"" if isinstance(first, bytes) else _key_of(first)
            if allowed is not None and not allowed.allows(key):
                # libzmq checks the key at the handshake only; a revoked key would keep its connection.
                self.core.handle(KeyRevoked(allowed.role, peer), time.monotonic())
                continue
            read(peer, frames, key)

    def _read_from_client(self, peer: bytes, frames: Frames, key: bytes) -> None:
        now = time.monotonic()
        try:
            message = decode_from_client(_header(frames))
            _check_frames(frames, message)
        except ProtocolError as problem:
            self.core.handle(Malformed("clients", peer, problem), now)
            return
        allowed = self._allowed("clients")
        max_priority = MAX_PRIORITY if allowed is None else allowed.max_priority_of(key)
        self.core.handle(ReceivedFromClient(peer, message, frames[1:], key, max_priority), now)

    def _read_from_worker(self, peer: bytes, frames: Frames, key: bytes) -> None:
        now = time.monotonic()
        try:
            header = _header(frames)
            message = decode_from_worker(header)
            _check_frames(frames, message)
            if isinstance(message, Ready):
                self._check_name(key, message.name)
        except ProtocolError as problem:
            self.core.handle(Malformed("workers", peer, problem), now)
            return
        self.core.handle(ReceivedFromWorker(peer, message, header, frames[1:]), now)

    def _check_name(self, key: bytes, name: str) -> None:
        """Raise `UnauthorizedError` if a worker's key does not permit the worker's name."""
        if self._access is not None and not self._access.may_register(key, name):
            own = self._access.lists["workers"].name_of(key)
            raise UnauthorizedError(f"the key {own!r} may only register as {own!r} or '{own}-…', not as {name!r}")

    def _perform(self, actions: Sequence[Action]) -> None:
        lines: list[LogEvent] = []
        for action in actions:
            if isinstance(action, LogEvent):
                lines.append(action)
            elif not isinstance(action, StateChange):
                self._send(action)
            elif self._traces is not None:
                self._traces.state_changed(action, time.monotonic())
        if lines:
            log_all(_log, lines)

    def _send(self, action: Send) -> None:
        if isinstance(action, SendToClient):
            socket, peer = self._client_socket, action.client_id
        else:
            socket, peer = self._worker_socket, action.worker_id
        message = action.message
        header = message if isinstance(message, bytes) else encode(message)
        try:
            socket.send(peer, _SNDMORE_NOBLOCK)
        except zmq.ZMQError as error:
            # Disconnected (EHOSTUNREACH) or full (EAGAIN): libzmq accepts either all of a message or nothing.
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.core.handle(SendFailed(action), time.monotonic())
            return
        payload = action.payload
        socket.send(header, _SNDMORE if payload else 0)
        last = len(payload) - 1
        for index, frame in enumerate(payload):
            socket.send(frame, _SNDMORE if index < last else 0, copy=isinstance(frame, bytes))

    def _close(self) -> None:
        for request in self._snapshot_requests:
            request.cancel()
        self._client_socket.close()
        self._worker_socket.close()
        if self._access is not None:
            self._access.close()
        self._context.term()
        with self._wake_lock:
            self._closed = True
            os.close(self._wake_read)
            os.close(self._wake_write)


def _header(frames: Frames) -> bytes:
    if not frames:
        raise ProtocolError("a message needs a header frame")
    header = frames[0]
    return header if isinstance(header, bytes) else header.bytes


def _check_frames(frames: Frames, message: Message) -> None:
    """Raise `ProtocolError`, with the id of the request, if a message has too many frames."""
    if len(frames) > MAX_FRAMES:
        error = ProtocolError(f"a message may have at most {MAX_FRAMES} frames")
        error.request_id = getattr(message, "request_id", None)
        error.is_answer = isinstance(message, Result | Error)
        raise error


def _key_of(frame: zmq.Frame) -> bytes:
    """Return the CURVE public key (Z85) of a frame's sender; empty if it has not authenticated itself."""
    key = frame.get("User-Id")
    return key.encode() if isinstance(key, str) else b""
