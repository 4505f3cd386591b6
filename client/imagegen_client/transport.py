"""One I/O thread between the core and a ZeroMQ socket; commands come from any thread."""

import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

import zmq

from imagegen_client.core import ClientCore
from imagegen_client.events import (
    Action,
    Answer,
    CancelAsked,
    CloseAsked,
    Dial,
    Event,
    Finish,
    Lost,
    Payload,
    Received,
    Refused,
    Report,
    Send,
    StatsAsked,
    SubmitAsked,
    Suspected,
    Unreadable,
    Warn,
)
from imagegen_protocol import ClientClosedError, ImagegenError, ProtocolError
from imagegen_protocol.frames import decode_broker_to_client, encode
from imagegen_protocol.handshake import HandshakeMonitor
from imagegen_protocol.keys import CurveKeys
from imagegen_protocol.limits import ID_BYTES, MAX_FRAME_BYTES, MAX_FRAMES
from imagegen_protocol.messages import ClientMessage, Goodbye, Progress, Result, Submit
from imagegen_protocol.sockets import enable_keepalive

logger = logging.getLogger("imagegen.client")

MAX_DRAIN = 1000
"""Messages read in a row before commands and timers get their turn."""
LINGER_MILLISECONDS = 1000
"""How long a closing client may take to get its last acknowledgements and its GOODBYE out."""

WAKE_BYTES = 64
_MORE = zmq.NOBLOCK | zmq.SNDMORE


class Sink(Protocol):
    """Who waits for an answer. Both are called on the I/O thread: they must be quick and must not raise."""

    def finish(self, outcome: Answer | ImagegenError) -> None:
        """Take the one end of the request."""

    def report(self, progress: Progress, payload: Payload) -> None:
        """Take a sign of progress, and its preview if there is one."""


class Transport:
    """Runs one core; thread-safe. All of its resources belong to the I/O thread, which frees them as it ends."""

    def __init__(self, core: ClientCore, keys: CurveKeys | None = None) -> None:
        self._core = core
        self._keys = keys
        # Reentrant: the finalizer of a forgotten client may close it in the middle of anything.
        self._lock = threading.RLock()
        self._commands: list[tuple[Event, Sink | None]] = []
        self._gone: ClientClosedError | None = None
        self._sinks: dict[bytes, Sink] = {}
        self._open = True
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._watch: HandshakeMonitor | None = None
        self._poller = zmq.Poller()
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._thread = threading.Thread(target=self._run, name="imagegen-client", daemon=True)
        self._thread.start()

    # ---- any thread --------------------------------------------------------------------------------------

    def ask(self, event: SubmitAsked | StatsAsked, sink: Sink) -> None:
        """Hand an event over; `sink` gets its one end. Raises `ClientClosedError` once closed or broken."""
        with self._lock:
            if self._gone is not None:
                raise ClientClosedError(self._gone.message) from self._gone
            self._post(event, sink)

    def cancel(self, key: bytes) -> None:
        """Give a request up; without effect when it has ended or the client is closed."""
        with self._lock:
            if self._gone is None:
                self._post(CancelAsked(key), None)

    def close(self) -> None:
        """Fail what is unfinished, take leave of the broker, and wait until the thread has ended."""
        with self._lock:
            if self._gone is None:
                self._gone = ClientClosedError("the client is closed")
                self._post(CloseAsked(), None)
        # A callback may close its own client: then the thread ends by itself right after.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _post(self, event: Event, sink: Sink | None) -> None:
        # One byte in the pipe is enough until the thread has taken the commands, so it never fills up. It goes
        # first: Ctrl-C in between must not leave a command of which nobody tells the thread.
        if not self._commands:
            os.write(self._wake_write, b"\0")
        self._commands.append((event, sink))

    # ---- the I/O thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            while self._open:
                ready = self._wait()
                now, deadline = time.monotonic(), self._core.next_deadline()
                # Before a tick that is due: what has arrived while this process slept tells that the broker lives.
                if self._socket in ready or (deadline is not None and now >= deadline):
                    self._drain_socket()
                if self._watch is not None and self._watch.monitor in ready:
                    self._look_at_handshakes()
                self._take_commands()
                self._do(self._core.tick(now))
        except BaseException as error:
            logger.exception("the I/O thread of the client failed")
            failure = error
        finally:
            self._leave(failure)

    def _wait(self) -> list[object]:
        """Wait for something to do, until the core's next deadline; return what can be read."""
        deadline = self._core.next_deadline()
        timeout = None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1000))
        ready: list[object] = [source for source, _ in self._poller.poll(timeout)]
        # Before the commands are taken: who comes later writes a byte anew.
        if self._wake_read in ready:
            os.read(self._wake_read, WAKE_BYTES)
        return ready

    def _drain_socket(self) -> None:
        for _ in range(MAX_DRAIN):
            event = self._receive()
            if event is None:
                break
            self._do(self._core.handle(event, time.monotonic()))
        self._do(self._core.settle())

    def _look_at_handshakes(self) -> None:
        if self._watch is None:
            return
        news, now = self._watch.read(), time.monotonic()
        if news.refusal:
            self._do(self._core.handle(Refused(news.refusal), now))
        elif news.suspicion:
            self._do(self._core.handle(Suspected(news.suspicion), now))
        elif news.lost:
            self._do(self._core.handle(Lost(), now))

    def _receive(self) -> Received | Unreadable | None:
        """Read one message, or None when there is none. Payload frames are not copied."""
        socket = self._socket
        if socket is None:
            return None
        try:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        header = frame.bytes
        payload: list[memoryview] = []
        # Whether more follows the frame knows; to ask the socket takes longer than to read it.
        while frame.more:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            payload.append(frame.buffer)
        try:
            message = decode_broker_to_client(header)
        except ProtocolError as error:
            return Unreadable(error)
        if len(payload) >= MAX_FRAMES:
            return Unreadable(ProtocolError(f"a message of {len(payload) + 1} frames"))
        return Received(message, payload)

    def _take_commands(self) -> None:
        with self._lock:
            commands, self._commands = self._commands, []
        for event, sink in commands:
            if sink is not None and isinstance(event, SubmitAsked | StatsAsked):
                self._sinks[event.key] = sink
        for event, _ in commands:
            self._do(self._core.handle(event, time.monotonic()))
            if isinstance(event, CloseAsked):
                self._open = False

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(message, payload):
                    self._send(message, payload)
                case Finish(key, outcome):
                    self._log_end(key, outcome)
                    self._sinks.pop(key).finish(outcome)
                case Report(key, progress, payload):
                    self._sinks[key].report(progress, payload)
                case Dial(endpoint):
                    self._dial(endpoint)
                case Warn(text):
                    logger.warning("%s", text)

    def _send(self, message: ClientMessage, payload: Payload) -> None:
        assert self._socket is not None, "the core sends only after it has dialled"
        if isinstance(message, Goodbye):
            self._socket.linger = LINGER_MILLISECONDS
        if isinstance(message, Submit) and logger.isEnabledFor(logging.DEBUG):
            logger.debug("request sent request_id=%s broker=%s", message.request_id.hex(), self._core.endpoint)
        # A refused connection is gone, and there is nowhere to put it: the core sends it again on the next one.
        with suppress(zmq.Again):
            self._socket.send(encode(message), _MORE if payload else zmq.NOBLOCK)
            for left, frame in enumerate(payload, 1 - len(payload)):
                self._socket.send(frame, _MORE if left else zmq.NOBLOCK, copy=False)

    def _log_end(self, key: bytes, outcome: Answer | ImagegenError) -> None:
        if not logger.isEnabledFor(logging.DEBUG):
            return
        if isinstance(outcome, ImagegenError):
            logger.debug("request ended request_id=%s outcome=%s", key.hex(), outcome.code)
        elif isinstance(outcome.message, Result):
            shown = outcome.message.request_id.hex()
            logger.debug("request ended request_id=%s outcome=result worker=%s", shown, outcome.message.worker)

    def _dial(self, endpoint: str) -> None:
        self._hang_up()
        socket = self._context.socket(zmq.DEALER)
        self._socket = socket
        # A new one for each socket: the broker ignores a second connection under the same routing id.
        socket.routing_id = secrets.token_bytes(ID_BYTES)
        socket.linger = 0
        # The client's own window bounds what is on its way; a full buffer would have to be retried here.
        socket.sndhwm = 0
        socket.maxmsgsize = MAX_FRAME_BYTES
        socket.reconnect_ivl_max = 1000
        socket.ipv6 = "[" in endpoint
        enable_keepalive(socket)
        if self._keys is not None:
            self._keys.apply(socket)
        self._watch = HandshakeMonitor(socket)
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._watch.monitor, zmq.POLLIN)

    def _hang_up(self) -> None:
        if self._watch is not None:
            self._poller.unregister(self._watch.monitor)
            self._watch.close()
            self._watch = None
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _leave(self, failure: BaseException | None) -> None:
        """End what has no end yet (there is some only if the thread failed), then free everything."""
        with self._lock:
            if failure is not None:
                self._gone = ClientClosedError(f"the client's I/O thread failed: {failure!r}")
                self._gone.__cause__ = failure
            gone = self._gone or ClientClosedError("the client is closed")
            sinks = [*self._sinks.values(), *(sink for _, sink in self._commands if sink is not None)]
            self._commands = []
            os.close(self._wake_read)
            os.close(self._wake_write)
        for sink in sinks:
            try:
                sink.finish(gone)
            except Exception:
                # One bad sink must not leave the others waiting for ever.
                logger.exception("a job could not be ended")
        self._hang_up()
        self._context.term()
