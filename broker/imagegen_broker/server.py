"""The broker's shell: one single-threaded poll loop that moves frames between two ROUTER sockets and the core.

It decodes the header of each message and no more; bodies and images pass through uncopied. It decides nothing.
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

from imagegen_broker.access import Access, AllowList, Role
from imagegen_broker.core.broker import BrokerCore
from imagegen_broker.core.counters import Histogram
from imagegen_broker.core.records import Action, Settings, ToClient
from imagegen_broker.core.snapshot import View, status
from imagegen_broker.tracing import Traces
from imagegen_common.logs import log_all
from imagegen_common.notify import SystemdNotifier
from imagegen_protocol.errors import ProtocolError
from imagegen_protocol.frames import decode_from_client, decode_from_worker, encode
from imagegen_protocol.limits import MAX_FRAME_BYTES, MAX_FRAMES
from imagegen_protocol.messages import Ready
from imagegen_protocol.sockets import close_dead_links
from imagegen_protocol.statistics import Statistics

_log = logging.getLogger("imagegen.broker")

_MESSAGES_A_ROUND = 256
"""Messages read from one socket before the core settles and the other socket has its turn."""
_FRONTEND_SEND_QUEUE = 512
"""Messages that may wait for one slow client before the broker drops them and sends them again later: twice what
`map` has on its way."""

_COPIED_BYTES = 4096
"""Frames of at most so many are copied."""
# As plain numbers: two flags of an enumeration take longer to join than a frame to send.
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
    """Requests held of each client."""

    @classmethod
    def of(cls, core: BrokerCore, now: float) -> Self:
        """Copy what is to be shown: all that a view costs the loop."""
        counters = core.ledger.counters
        return cls(
            core.view(now),
            core.is_ready(now),
            counters.queue_wait.copy(),
            counters.duration.copy(),
            tuple([len(client.requests) for client in core.ledger.clients.values()]),
        )

    @property
    def statistics(self) -> Statistics:
        """The content of `/stats`; computed at each call, on the caller's thread."""
        return self.view.statistics()


class Server:
    """Two bound sockets and the loop over them. `run` blocks until `stop` is called from any thread."""

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

        The loop feeds the watchdog of `notifier`. `show_workers` is called with the registered workers, in the
        loop, when one has come or gone; not before the broker has been there for long enough to know them.
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
        self._frontend = self._router(frontend, _FRONTEND_SEND_QUEUE, "clients")
        # A worker is never given more than its capacity: nothing to bound here.
        self._backend = self._router(backend, 0, "workers")
        self.frontend_endpoint: str = self._frontend.get_string(zmq.LAST_ENDPOINT)
        self.backend_endpoint: str = self._backend.get_string(zmq.LAST_ENDPOINT)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        # Reentrant: a signal handler may wake the loop in the midst of its end.
        self._wake_lock = RLock()
        self._closed = False
        self._asked: deque[Future[Snapshot]] = deque()
        self._stopping = False
        self._reloading = False
        self.core = BrokerCore(settings, time.monotonic())

    @property
    def wake_fd(self) -> int:
        """A byte written here wakes the loop; for `signal.set_wakeup_fd`."""
        return self._wake_write

    def run(self) -> None:
        """Serve until stopped, then close the sockets."""
        if self._access is not None:
            self._access.report()
        poller = zmq.Poller()
        poller.register(self._frontend, zmq.POLLIN)
        poller.register(self._backend, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        try:
            while not self._stopping:
                due_at = min(self.core.next_deadline(), self._notifier.due_at)
                wait = max(0.0, due_at - time.monotonic())
                # Rounded up, so that the loop does not spin through the last millisecond.
                ready = dict(poller.poll(int(wait * 1000) + 1))
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                if self._reloading:
                    self._reload()
                if self._backend in ready:
                    self._drain(self._backend, self._take_from_worker, self._allowed("workers"))
                if self._frontend in ready:
                    self._drain(self._frontend, self._take_from_client, self._allowed("clients"))
                for action in self.core.settle(time.monotonic()):
                    self._send(action)
                if notes := self.core.take_notes():
                    log_all(_log, notes)
                if self._traces is not None:
                    now = time.monotonic()
                    for move in self.core.take_moves():
                        self._traces.moved(move, now)
                self._tell_of_workers()
                while self._asked:
                    self._answer_snapshot(self._asked.popleft())
                self._notifier.tick(time.monotonic(), self._status)
            self._notifier.stopping("ending")
        finally:
            self._close()

    def stop(self) -> None:
        """Make `run` return soon. Safe from any thread and from a signal handler."""
        self._stopping = True
        self._wake()

    def reload(self) -> None:
        """Have the loop read the allow-lists again. Safe from any thread and from a signal handler."""
        self._reloading = True
        self._wake()

    def snapshot(self, timeout: float) -> Snapshot:
        """Return a view of the core, made by the loop. Raises TimeoutError if the loop does not answer."""
        asked: Future[Snapshot] = Future()
        self._asked.append(asked)
        self._wake()
        return asked.result(timeout)

    # ---- inside the loop ----------------------------------------------------------------------

    def _answer_snapshot(self, asked: Future[Snapshot]) -> None:
        view = Snapshot.of(self.core, time.monotonic())
        if asked.set_running_or_notify_cancel():
            asked.set_result(view)

    def _status(self) -> str:
        return status(self.core.ledger)

    def _tell_of_workers(self) -> None:
        ledger = self.core.ledger
        if self._show_workers is None or self._shown_generation == ledger.placement.generation:
            return
        if time.monotonic() >= self.core.dispatching_from:
            self._shown_generation = ledger.placement.generation
            self._show_workers([worker.ready for worker in ledger.workers.values()])

    def _wake(self) -> None:
        with self._wake_lock:
            if self._closed:
                return  # the number of the descriptor may be somebody else's by now
            try:
                os.write(self._wake_write, b"\0")
            except BlockingIOError:
                _log.debug("the wake pipe is full: the loop is awake already")

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
        socket.setsockopt(zmq.SNDHWM, send_queue)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        # No limit: libzmq aborts on a PING that it finds behind the message at which the limit had stopped it,
        # if the peer has reset the connection meanwhile. The limit counted messages, so it bounded no memory.
        socket.setsockopt(zmq.RCVHWM, 0)
        close_dead_links(socket)
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            if self._access is not None:
                self._access.close()
            self._context.destroy(0)
            raise zmq.ZMQError(error.errno, f"can't bind {endpoint}: {error}") from error
        return socket

    def _drain(
        self, socket: "zmq.Socket[bytes]", take: Callable[[bytes, Frames], None], allowed: AllowList | None
    ) -> None:
        """Read what is there, frame by frame. A frame tells whether more follow, in half the time."""
        for _ in range(_MESSAGES_A_ROUND):
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
                    # Headers and bodies are small, and cheaper copied than held; images are not.
                    frames.append(frame.bytes if len(frame) <= _COPIED_BYTES else frame)
            if allowed is not None and isinstance(first, zmq.Frame) and not allowed.allows(_key_of(first)):
                # libzmq asks for the key at the handshake alone; a revoked one would keep its connection.
                self.core.revoked(peer, allowed.role, time.monotonic())
                continue
            take(peer, frames)

    def _take_from_client(self, peer: bytes, frames: Frames) -> None:
        now = time.monotonic()
        try:
            message = decode_from_client(_header(frames))
        except ProtocolError as problem:
            self.core.malformed_from_client(peer, problem)
            return
        self.core.from_client(peer, message, frames[1:], now)

    def _take_from_worker(self, peer: bytes, frames: Frames) -> None:
        now = time.monotonic()
        try:
            header = _header(frames)
            message = decode_from_worker(header)
        except ProtocolError as problem:
            self.core.malformed_from_worker(peer, problem, now)
            return
        self.core.from_worker(peer, message, header, frames[1:], now)

    def _send(self, action: Action) -> None:
        if isinstance(action, ToClient):
            socket, peer = self._frontend, action.client_id
        else:
            socket, peer = self._backend, action.worker_id
        message = action.message
        header = message if isinstance(message, bytes) else encode(message)
        try:
            socket.send(peer, _SNDMORE_NOBLOCK)
        except zmq.ZMQError as error:
            # Gone (EHOSTUNREACH) or full (EAGAIN): libzmq takes all of a message, or none of it.
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.core.not_sent(action)
            return
        payload = action.payload
        socket.send(header, _SNDMORE if payload else 0)
        last = len(payload) - 1
        for index, frame in enumerate(payload):
            socket.send(frame, _SNDMORE if index < last else 0, copy=isinstance(frame, bytes))

    def _close(self) -> None:
        for asked in self._asked:
            asked.cancel()
        self._frontend.close()
        self._backend.close()
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
    if len(frames) > MAX_FRAMES:
        raise ProtocolError(f"a message may have {MAX_FRAMES} frames")
    header = frames[0]
    return header if isinstance(header, bytes) else header.bytes


def _key_of(frame: zmq.Frame) -> bytes:
    """Return the key (Z85) with which the peer that sent a frame has proved itself."""
    key = frame.get("User-Id")
    return key.encode() if isinstance(key, str) else b""
