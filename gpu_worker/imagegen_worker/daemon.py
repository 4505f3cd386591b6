"""The worker process: the main thread moves bytes and reads the clock, the device thread generates images."""

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import threading
import time
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING

import zmq

from imagegen_common.logs import flush, log
from imagegen_common.notify import SystemdNotifier
from imagegen_common.signals import ignore_hangup
from imagegen_common.tracing import Attribute, TracingError, open_tracer
from imagegen_protocol import ProtocolError, decode_broker_to_worker, encode
from imagegen_protocol.handshake import HandshakeReport
from imagegen_protocol.keys import KeyFileError, read_curve_keys
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, StartError, TemporaryStartError
from imagegen_worker.backends.factory import LoadedEngine
from imagegen_worker.config import WorkerConfig
from imagegen_worker.connection import Connection
from imagegen_worker.core.events import (
    Action,
    Cancel,
    Decode,
    DrainRequested,
    EngineEvent,
    EngineReady,
    Event,
    Exit,
    Job,
    LoadModel,
    LogEvent,
    Malformed,
    Received,
    Reconnect,
    Send,
    Stop,
    Tick,
)
from imagegen_worker.core.state import WorkerIdentity, WorkerLimits
from imagegen_worker.core.worker import WorkerCore
from imagegen_worker.images.encoding import EncodePool
from imagegen_worker.mailbox import EngineDied, Mailbox
from imagegen_worker.supervisor.core import DRAIN_SIGNAL
from imagegen_worker.telemetry.status import StatusLine

if TYPE_CHECKING:
    from imagegen_worker.telemetry.metrics import Metrics
    from imagegen_worker.telemetry.tracing import RequestTraces

MESSAGES_PER_TURN = 256
"""Maximum number of messages read from one broker, and sent in reply, before the other brokers and the engine are
served. The chunks of one reply are not divided."""
JOIN_SECONDS = 5.0
"""Maximum time to wait for the device thread at the end."""

_log = logging.getLogger(__name__)


class Daemon:
    """One worker. `run` returns the exit status of the process; call it on the main thread."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        identity = WorkerIdentity(
            worker_id=secrets.token_bytes(16),
            name=config.worker_name,
            host=socket.gethostname(),
            gpu_id=config.gpu,
            gpu_uuid=config.gpu_uuid,
            backend=config.backend,
            capacity=config.effective_capacity,
            max_batch_size=config.batch_size,
            batching=config.effective_batching,
            pid=os.getpid(),
            version=version("imagegen-fleet"),
        )
        limits = WorkerLimits(drain_seconds=config.drain_timeout, step_timeout=config.step_timeout)
        self._core = WorkerCore(identity, brokers=len(config.brokers), limits=limits, now=time.monotonic())
        self._mailbox = Mailbox()
        self._encoder = EncodePool(self._mailbox)
        self._device = threading.Thread(target=self._device_thread, name="device", daemon=True)
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._connections: list[Connection] = []
        self._signals: list[int] = []
        self._metrics: Metrics | None = None
        self._traces: RequestTraces | None = None
        self._notifier = SystemdNotifier(os.environ)
        self._status_line: StatusLine | None = None
        self._status: int | None = None
        self._failure = ""

    def run(self) -> int:
        """Serve until drained. Raises `StartError` if a port cannot be bound or an endpoint is invalid."""
        self._log_start()
        with contextlib.ExitStack() as stack:
            stack.callback(self._mailbox.close)
            stack.callback(self._notifier.close)
            if self._config.otlp_endpoint is not None:
                self._open_tracer(stack, self._config.otlp_endpoint)
            self._notifier.starting(f"loading {self._config.model_name}")
            self._catch_signals(stack)
            stack.callback(self._context.term)
            if self._config.http_port is not None:
                self._serve_metrics(stack, self._config.http_host, self._config.http_port)
            self._connect(stack)
            stack.callback(self._stop_threads)
            self._device.start()
            try:
                status = self._loop()
            except Exception as error:  # noqa: BLE001 - the sockets must be closed, and the last line be clear
                _log.exception("main thread raised an exception")
                status, self._failure = 1, f"main thread died: {type(error).__name__}: {error}"
        log(_log, logging.CRITICAL if status else logging.INFO, self._failure or "worker exited", status=status)
        if self._device.is_alive():
            # A thread inside native code, such as one that loads a model, would delay or crash a normal exit.
            logging.shutdown()
            os._exit(status)
        return status

    def _log_start(self) -> None:
        config = self._config
        gpu = {"gpu_uuid": config.gpu_uuid, "gpu_name": config.gpu_name} if config.gpu_name else {}
        log(
            _log,
            logging.INFO,
            "worker started",
            brokers=",".join(config.brokers),
            backend=config.backend,
            models=",".join(config.sources),
            batching=config.effective_batching,
            max_batch_size=config.batch_size,
            capacity=config.effective_capacity,
            pid=os.getpid(),
            **gpu,
        )

    # ---- the device thread ---------------------------------------------------------------------------------

    def _device_thread(self) -> None:
        try:
            loaded = self._load()
            self._mailbox.post(loaded.ready)
            loaded.engine.run(self._mailbox)
            loaded.close()
        except BaseException as error:  # noqa: BLE001 - the main thread logs it and ends the process
            self._mailbox.post(EngineDied(error))

    def _load(self) -> LoadedEngine:
        try:
            return LoadedEngine(self._config, self._encoder)
        except StartError:
            raise
        except ModuleNotFoundError as error:
            raise StartError(f"{error}; install imagegen-fleet[worker]") from error
        except (DeviceMemoryError, DeviceLostError) as error:  # another process may use the device
            raise TemporaryStartError(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            _log.exception("model load raised an exception")
            raise StartError(f"{type(error).__name__}: {error}") from error

    # ---- the main thread -----------------------------------------------------------------------------------

    def _loop(self) -> int:
        self._poller.register(self._mailbox.fileno(), zmq.POLLIN)
        while self._status is None:
            readable = dict(self._poller.poll(self._wait_milliseconds()))
            for event in self._mailbox.events():
                if isinstance(event, EngineDied):
                    return self._engine_died(event.error)
                self._on_engine_event(event)
            self._handle_signals()  # after `events`, which also takes the byte that a signal writes
            for index, connection in enumerate(self._connections):
                if connection.socket in readable:
                    connection.on_message()
                    self._receive(index, connection.socket)
                self._log_handshakes(index, connection.check(time.monotonic()))
            self._handle(Tick())
            if self._metrics is not None:
                self._metrics.update(self._core)
            self._notify_systemd(time.monotonic())
        self._notifier.stopping("ending")
        return self._status

    def _on_engine_event(self, event: EngineEvent) -> None:
        if isinstance(event, EngineReady):
            self._status_line = StatusLine(event.device, len(self._config.brokers))
            self._notifier.ready(f"{','.join(model.name for model in event.models)} on {event.device}")
        if self._metrics is not None:
            self._metrics.observe(event)
        if self._traces is not None:
            self._traces.on_event(event, self._find_id, time.monotonic())
        self._handle(event)

    def _log_handshakes(self, index: int, news: HandshakeReport) -> None:
        endpoint = self._config.brokers[index]
        if news.refusal:
            log(_log, logging.ERROR, "refused by broker, retrying", broker=endpoint, error=news.refusal)
        elif news.suspicion:
            log(_log, logging.WARNING, "handshake failed, retrying", broker=endpoint, error=news.suspicion)

    def _notify_systemd(self, now: float) -> None:
        """Feed systemd's watchdog from the main thread, unless the device has stopped making steps."""
        if (line := self._status_line) is not None and now >= self._notifier.due_at:
            self._notifier.tick(now, lambda: line.text(self._core, now), self._core.step_age(now) or 0.0)

    def _wait_milliseconds(self) -> int | None:
        times = [connection.reconnect_at for connection in self._connections]
        times.append(self._core.next_deadline())
        if self._status_line is not None:
            times.append(self._notifier.due_at)
        due = min((at for at in times if at is not None and math.isfinite(at)), default=None)
        return None if due is None else max(math.ceil((due - time.monotonic()) * 1000), 0)

    def _handle(self, event: Event) -> int:
        """Let the core handle an event; return the number of actions."""
        actions = self._core.handle(event, time.monotonic())
        self._perform(actions)
        return len(actions)

    def _receive(self, index: int, dealer: "zmq.Socket[bytes]") -> None:
        left = MESSAGES_PER_TURN
        while left > 0:
            try:
                header, *frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_broker_to_worker(header)
            except ProtocolError as error:
                left -= 1 + self._handle(Malformed(index, error))
            else:
                if self._traces is not None:
                    self._traces.on_message(message, time.monotonic())
                left -= 1 + self._handle(Received(index, message, tuple(frames)))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._send(action)
                case Reconnect():
                    self._connections[action.broker].reconnect(time.monotonic())
                case Decode():
                    self._encoder.decode(action)
                case Cancel():
                    self._encoder.cancel(action.number)
                    self._mailbox.put(action)
                case Job() | LoadModel():
                    self._mailbox.put(action)
                case LogEvent():
                    broker = {} if action.broker is None else {"broker": self._config.brokers[action.broker]}
                    log(_log, action.level, action.text, **{**action.fields, **broker})
                case Exit():
                    self._status = action.status

    def _send(self, action: Send) -> None:
        try:
            # Images are not copied; copying small frames is cheaper than tracking them.
            self._connections[action.broker].socket.send_multipart(
                (encode(action.message), *action.frames), zmq.NOBLOCK, copy=not action.frames
            )
        except zmq.Again:
            # No connection. The next heartbeats reveal what was lost.
            broker, kind = self._config.brokers[action.broker], type(action.message).__name__
            log(_log, logging.DEBUG, "message dropped", broker=broker, kind=kind)

    def _engine_died(self, error: BaseException) -> int:
        if isinstance(error, StartError):
            self._failure = f"the model could not be loaded: {error}"
            return error.status
        _log.error("device thread raised an exception", exc_info=error)
        self._failure = f"device thread died: {type(error).__name__}: {error}"
        return 1

    # ---- sockets and signals -------------------------------------------------------------------------------

    def _serve_metrics(self, stack: contextlib.ExitStack, host: str, port: int) -> None:
        try:
            from imagegen_worker.telemetry.http import advertised_address
            from imagegen_worker.telemetry.metrics import Metrics
        except ModuleNotFoundError as error:
            raise StartError(f"--http-port: {error}; install imagegen-fleet[worker]") from error
        self._metrics = Metrics(self._config)
        try:
            bound = self._metrics.serve(host, port)
        except OSError as error:
            raise TemporaryStartError(f"--http-port: cannot bind {host}:{port}: {error}") from error
        stack.callback(self._metrics.close)
        address = advertised_address(host, bound)
        self._core.set_metrics_address(address)
        log(_log, logging.INFO, "metrics server started", address=f"http://{address}/metrics")

    def _open_tracer(self, stack: contextlib.ExitStack, endpoint: str) -> None:
        from imagegen_worker.telemetry.tracing import RequestTraces

        attributes: dict[str, Attribute] = {"host.name": socket.gethostname(), "imagegen.gpu": self._config.gpu}
        attributes["service.instance.id"] = self._config.worker_name
        try:
            tracer = open_tracer(endpoint, "imagegen-worker", **attributes)
        except TracingError as error:
            raise StartError(str(error)) from error
        self._traces = RequestTraces(tracer)
        stack.callback(self._traces.close)

    def _find_id(self, number: int) -> bytes | None:
        held = self._core.held.by_number(number)
        return None if held is None else held.id

    def _connect(self, stack: contextlib.ExitStack) -> None:
        try:
            keys = read_curve_keys(self._config.key, self._config.broker_key)
        except KeyFileError as error:
            raise StartError(str(error)) from error
        for endpoint in self._config.brokers:
            connection = Connection(self._context, self._poller, endpoint, keys)
            stack.callback(connection.close)
            self._connections.append(connection)

    def _catch_signals(self, stack: contextlib.ExitStack) -> None:
        fd = signal.set_wakeup_fd(self._mailbox.wakeup_fd(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, fd)
        for number in (signal.SIGTERM, signal.SIGINT, DRAIN_SIGNAL):
            stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
        stack.callback(signal.signal, signal.SIGHUP, ignore_hangup(_log))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        if number != DRAIN_SIGNAL and len([n for n in self._signals if n != DRAIN_SIGNAL]) > 1:
            try:
                log(_log, logging.CRITICAL, "second signal received, exiting", signal=signal.Signals(number).name)
                flush()
            finally:  # even if the signal has interrupted the logging of a line
                os._exit(128 + number)

    def _handle_signals(self) -> None:
        if self._signals:
            self._handle(DrainRequested(signal.Signals(self._signals[0]).name))

    def _stop_threads(self) -> None:
        self._mailbox.put(Stop())
        if self._status == 0 and self._core.ready:
            self._device.join(JOIN_SECONDS)
            self._encoder.close()
