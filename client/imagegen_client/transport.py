"""The I/O thread that runs a client core on a ZeroMQ socket; requests come from any thread."""

import logging
import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Protocol

import zmq

from imagegen_client import events as ev
from imagegen_client.core import ClientCore
from imagegen_protocol import ClientClosedError, ImagegenError, ProtocolError
from imagegen_protocol.frames import decode_broker_to_client, encode
from imagegen_protocol.handshake import HandshakeMonitor
from imagegen_protocol.keys import CurveKeys
from imagegen_protocol.limits import ID_BYTES, MAX_CHUNK_BYTES, MAX_FETCH_BYTES, MAX_FRAMES
from imagegen_protocol.messages import Chunk, ClientMessage, Error, Goodbye, Progress, Result, Stats
from imagegen_protocol.sockets import enable_keepalive
from imagegen_protocol.terminal import escape_controls

logger = logging.getLogger("imagegen.client")

MAX_MESSAGES_PER_READ = 1000
"""Messages read in a row before requests and timers are served."""
MAX_UNSENT_CHUNK_BYTES = MAX_FETCH_BYTES
"""Maximum size of the chunks that wait in ZeroMQ's buffers; further chunks are dropped."""
LINGER_MILLISECONDS = 1000
"""Time limit of closing for sending the last acknowledgements and GOODBYE."""

_WAKE_BYTES = 64
_MORE = zmq.NOBLOCK | zmq.SNDMORE


class ResponseHandler(Protocol):
    """Receiver of one request's answer. Called on the I/O thread: must return quickly and must not raise."""

    def on_complete(self, outcome: ev.Answer | ImagegenError) -> None:
        """Receive the answer or the error; called once."""

    def on_progress(self, progress: Progress, payload: ev.Payload) -> None:
        """Receive a progress message and its preview, if any."""

    def on_waiting(self, reason: str) -> None:
        """Receive the reason why no broker serves this client at the moment."""


class Transport:
    """Runs one core; thread-safe. The I/O thread owns all sockets and frees them when it ends."""

    def __init__(self, core: ClientCore, keys: CurveKeys | None = None) -> None:
        self._core = core
        self._keys = keys
        # Reentrant: the finalizer of a garbage-collected client may call `close` anywhere.
        self._lock = threading.RLock()
        self._queued: list[tuple[ev.Event, ResponseHandler | None]] = []
        self._closed_error: ClientClosedError | None = None
        self._handlers: dict[bytes, ResponseHandler] = {}
        self._running = True
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._handshakes: HandshakeMonitor | None = None
        self._unsent_chunks: deque[tuple[zmq.MessageTracker, int]] = deque()
        self._unsent_bytes = 0
        """Size of the chunks that wait in ZeroMQ's buffers."""
        self._poller = zmq.Poller()
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._thread = threading.Thread(target=self._run, name="imagegen-client", daemon=True)
        self._thread.start()

    # ---- any thread --------------------------------------------------------------------------------------

    def submit(self, event: ev.SubmitRequested | ev.StatsRequested, handler: ResponseHandler) -> None:
        """Submit a request or query. Raises `ClientClosedError` once the client is closed or has failed."""
        with self._lock:
            if self._closed_error is not None:
                raise ClientClosedError(self._closed_error.message) from self._closed_error
            self._enqueue(event, handler)

    def cancel(self, key: bytes) -> None:
        """Cancel a request; no effect if it has ended or the client is closed."""
        with self._lock:
            if self._closed_error is None:
                self._enqueue(ev.CancelRequested(key), None)

    def close(self) -> None:
        """End unfinished requests in `ClientClosedError`, send GOODBYE, and wait for the thread to end."""
        with self._lock:
            if self._closed_error is None:
                self._closed_error = ClientClosedError("the client is closed")
                self._enqueue(ev.CloseRequested(), None)
        # A callback on the I/O thread may close its own client: the thread then ends right afterwards.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _enqueue(self, event: ev.Event, handler: ResponseHandler | None) -> None:
        # One byte in the pipe is enough until the thread has taken the events, so the pipe never fills up. It is
        # written first: Ctrl-C between the two lines must not leave an event without a wake-up.
        if not self._queued:
            os.write(self._wake_write, b"\0")
        self._queued.append((event, handler))

    # ---- the I/O thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            while self._running:
                ready = self._wait()
                now, deadline = time.monotonic(), self._core.next_deadline()
                # Read before a tick that is due: messages that arrived while this process was suspended show that
                # the broker is alive.
                if self._socket in ready or (deadline is not None and now >= deadline):
                    self._read_socket()
                if self._handshakes is not None and self._handshakes.monitor in ready:
                    self._read_handshakes(self._handshakes)
                self._take_queued()
                self._perform(self._core.handle(ev.Tick(), now))
        except BaseException as error:
            logger.exception("I/O thread failed")
            failure = error
        finally:
            self._free(failure)

    def _wait(self) -> list[object]:
        """Wait for input until the core's next deadline; return the readable sources."""
        deadline = self._core.next_deadline()
        timeout = None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1000))
        ready: list[object] = [source for source, _ in self._poller.poll(timeout)]
        # Emptied before the events are taken: an event that is added later writes a new byte.
        if self._wake_read in ready:
            os.read(self._wake_read, _WAKE_BYTES)
        return ready

    def _read_socket(self) -> None:
        for _ in range(MAX_MESSAGES_PER_READ):
            event = self._receive()
            if event is None:
                break
            self._perform(self._core.handle(event, time.monotonic()))

    def _read_handshakes(self, handshakes: HandshakeMonitor) -> None:
        changes, now = handshakes.read(), time.monotonic()
        if changes.refusal:
            self._perform(self._core.handle(ev.HandshakeRejected(changes.refusal), now))
        elif changes.suspicion:
            self._perform(self._core.handle(ev.HandshakeFailed(changes.suspicion), now))
        elif changes.lost:
            self._perform(self._core.handle(ev.Disconnected(), now))

    def _receive(self) -> ev.Received | ev.InvalidMessage | None:
        """Read one message; return None if there is none. Frames of the payload are not copied."""
        socket = self._socket
        if socket is None:
            return None
        try:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        header = frame.bytes
        payload: list[memoryview] = []
        number = 1
        # `frame.more` is much cheaper than the socket option RCVMORE.
        while frame.more:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            number += 1
            if number <= MAX_FRAMES:
                payload.append(frame.buffer)
        try:
            message = decode_broker_to_client(header)
        except ProtocolError as error:
            return ev.InvalidMessage(error)
        if number > MAX_FRAMES:
            problem = ProtocolError(f"expected a message of at most {MAX_FRAMES} frames, got {number}")
            problem.request_id = getattr(message, "request_id", None)
            problem.is_answer = isinstance(message, Result | Error | Stats)
            return ev.InvalidMessage(problem)
        return ev.Received(message, payload)

    def _take_queued(self) -> None:
        with self._lock:
            queued, self._queued = self._queued, []
        for event, handler in queued:
            if handler is not None and isinstance(event, ev.SubmitRequested | ev.StatsRequested):
                self._handlers[event.key] = handler
        for event, _ in queued:
            self._perform(self._core.handle(event, time.monotonic()))
            if isinstance(event, ev.CloseRequested):
                self._running = False

    def _perform(self, actions: Iterable[ev.Action]) -> None:
        for action in actions:
            match action:
                case ev.Send(Chunk() as chunk, (data,)):
                    self._send_chunk(chunk, data)
                case ev.Send(message, payload):
                    self._send(message, payload)
                case ev.LogEvent(level, text, fields):
                    if logger.isEnabledFor(level):
                        logger.log(level, "%s%s", text, _format_fields(fields))
                case ev.Complete(key, outcome):
                    self._handlers.pop(key).on_complete(outcome)
                case ev.ReportProgress(key, progress, payload):
                    self._handlers[key].on_progress(progress, payload)
                case ev.ReportWaiting(key, reason):
                    self._handlers[key].on_waiting(reason)
                case ev.Connect(endpoint):
                    self._connect(endpoint)

    def _send(self, message: ClientMessage, payload: ev.Payload) -> None:
        assert self._socket is not None, "the core sends only after connecting"
        if isinstance(message, Goodbye):
            self._socket.linger = LINGER_MILLISECONDS
        # Again: the connection was rejected, so the socket has no peer; the core sends again on the next one.
        with suppress(zmq.Again):
            self._socket.send(encode(message), _MORE if payload else zmq.NOBLOCK)
            for left, frame in enumerate(payload, 1 - len(payload)):
                self._socket.send(frame, _MORE if left else zmq.NOBLOCK, copy=False)

    def _send_chunk(self, chunk: Chunk, data: bytes | memoryview) -> None:
        """Send a chunk without copying it; it is dropped if too many wait, and the broker requests it again."""
        assert self._socket is not None, "the core sends only after connecting"
        unsent = self._unsent_chunks
        while unsent and unsent[0][0].done:
            self._unsent_bytes -= unsent.popleft()[1]
        if self._unsent_bytes + len(data) > MAX_UNSENT_CHUNK_BYTES:
            return
        frame = zmq.Frame(data, track=True, copy=False)
        assert frame.tracker is not None, "the frame is tracked"
        with suppress(zmq.Again):
            self._socket.send(encode(chunk), _MORE)
            self._socket.send(frame, zmq.NOBLOCK, copy=False)
            unsent.append((frame.tracker, len(data)))
            self._unsent_bytes += len(data)

    def _connect(self, endpoint: str) -> None:
        self._disconnect()
        socket = self._context.socket(zmq.DEALER)
        self._socket = socket
        # New for each socket: the broker ignores a second connection with the same routing id.
        socket.routing_id = secrets.token_bytes(ID_BYTES)
        socket.linger = 0
        # Unlimited: the application limits its unfinished requests; a full buffer would need retries here.
        socket.sndhwm = 0
        socket.maxmsgsize = MAX_CHUNK_BYTES
        socket.reconnect_ivl_max = 1000
        socket.ipv6 = "[" in endpoint
        enable_keepalive(socket)
        if self._keys is not None:
            self._keys.apply(socket)
        self._handshakes = HandshakeMonitor(socket)
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._handshakes.monitor, zmq.POLLIN)

    def _disconnect(self) -> None:
        self._unsent_chunks.clear()
        self._unsent_bytes = 0
        if self._handshakes is not None:
            self._poller.unregister(self._handshakes.monitor)
            self._handshakes.close()
            self._handshakes = None
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _free(self, failure: BaseException | None) -> None:
        """End unfinished requests (left only if the thread failed), then free all resources."""
        with self._lock:
            if failure is not None:
                self._closed_error = ClientClosedError(f"the client's I/O thread failed: {failure!r}")
                self._closed_error.__cause__ = failure
            closed = self._closed_error or ClientClosedError("the client is closed")
            handlers = [*self._handlers.values(), *(handler for _, handler in self._queued if handler is not None)]
            self._queued = []
            os.close(self._wake_read)
            os.close(self._wake_write)
        for handler in handlers:
            try:
                handler.on_complete(closed)
            except Exception:
                # One failing handler must not leave the other requests waiting for ever.
                logger.exception("response handler failed")
        self._disconnect()
        self._context.term()


def _format_fields(fields: Mapping[str, str]) -> str:
    pairs = ((key, escape_controls(value)) for key, value in fields.items())
    return "".join(f' {key}="{value}"' if " " in value else f" {key}={value}" for key, value in pairs)
