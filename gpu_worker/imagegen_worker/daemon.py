"""The worker process: the main thread moves bytes and reads the clock, the device thread makes images."""

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
from imagegen_common.tracing import Attribute, TracingError, open_tracer
from imagegen_protocol import ProtocolError, decode_broker_to_worker, encode
from imagegen_protocol.handshake import HandshakeNews
from imagegen_protocol.keys import KeyFileError, read_dial_keys
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, NotNowError, StartError
from imagegen_worker.backends.make import Device
from imagegen_worker.config import WorkerConfig
from imagegen_worker.connection import Connection
from imagegen_worker.core.events import (
    Action,
    CallFailed,
    Cancel,
    Decode,
    DrainRequested,
    Event,
    Exit,
    Job,
    Load,
    Malformed,
    Note,
    Received,
    Redial,
    Send,
    Stop,
    Warm,
)
from imagegen_worker.core.identity import Identity
from imagegen_worker.core.policy import Policy
from imagegen_worker.core.worker import WorkerCore
from imagegen_worker.images.encoding import EncodePool
from imagegen_worker.mailbox import Died, Mailbox
from imagegen_worker.supervisor.core import DRAIN_SIGNAL
from imagegen_worker.telemetry.status import StatusLine

if TYPE_CHECKING:
    from imagegen_worker.telemetry.metrics import Metrics
    from imagegen_worker.telemetry.tracing import Traces

MESSAGES_PER_TURN = 256
"""Messages read from one broker before the others and the engine have their turn."""
JOIN_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Daemon:
    """One worker. `run` returns the exit status of the process; call it on the main thread."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        identity = Identity(
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
        policy = Policy(drain_seconds=config.drain_timeout, step_timeout=config.step_timeout)
        self._core = WorkerCore(identity, links=len(config.brokers), policy=policy, now=time.monotonic())
        self._mailbox = Mailbox()
        self._encoder = EncodePool(self._mailbox)
        self._device = threading.Thread(target=self._device_thread, name="device", daemon=True)
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._connections: list[Connection] = []
        self._signals: list[int] = []
        self._metrics: Metrics | None = None
        self._traces: Traces | None = None
        self._notifier = SystemdNotifier(os.environ)
        self._line: StatusLine | None = None
        self._status: int | None = None
        self._failure = ""

    def run(self) -> int:
        """Serve until drained. Raises `StartError` if a port or an endpoint can't be had."""
        config = self._config
        card = {"gpu_uuid": config.gpu_uuid, "gpu_name": config.gpu_name} if config.gpu_name else {}
        log(
            _log,
            logging.INFO,
            "worker starts",
            brokers=",".join(config.brokers),
            backend=config.backend,
            models=",".join(config.sources),
            batching=config.effective_batching,
            max_batch_size=config.batch_size,
            capacity=config.effective_capacity,
            pid=os.getpid(),
            **card,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(self._mailbox.close)
            stack.callback(self._notifier.close)
            if config.otlp_endpoint is not None:
                self._trace(stack, config.otlp_endpoint)
            self._notifier.starting(f"loading {config.model_name}")
            self._catch_signals(stack)
            stack.callback(self._context.term)
            if config.http_port is not None:
                self._serve_metrics(stack, config.http_host, config.http_port)
            self._dial(stack)
            stack.callback(self._end_threads)
            self._device.start()
            try:
                status = self._loop()
            except Exception as error:  # noqa: BLE001 - the sockets must be closed, and the last line be clear
                _log.exception("the main thread raised")
                status, self._failure = 1, f"the main thread died: {type(error).__name__}: {error}"
        log(_log, logging.CRITICAL if status else logging.INFO, self._failure or "worker exits", status=status)
        if self._device.is_alive():
            # A thread inside native code (a model that is being loaded) would hold up or crash a normal exit.
            logging.shutdown()
            os._exit(status)
        return status

    # ---- the device thread ---------------------------------------------------------------------------------

    def _device_thread(self) -> None:
        try:
            device = self._load()
            self._mailbox.post(device.warm)
            device.engine.run(self._mailbox)
            device.close()
        except BaseException as error:  # noqa: BLE001 - the main thread logs it and ends the process
            self._mailbox.post(Died(error))

    def _load(self) -> Device:
        try:
            return Device(self._config, self._encoder)
        except StartError:
            raise
        except ModuleNotFoundError as error:
            raise StartError(f"{error}; install imagegen-fleet[worker]") from error
        except (DeviceMemoryError, DeviceLostError) as error:  # another process may have had the device
            raise NotNowError(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            _log.exception("loading the model raised")
            raise StartError(f"{type(error).__name__}: {error}") from error

    # ---- the main thread -----------------------------------------------------------------------------------

    def _loop(self) -> int:
        self._poller.register(self._mailbox.fileno(), zmq.POLLIN)
        while self._status is None:
            ready = dict(self._poller.poll(self._wait_milliseconds()))
            for event in self._mailbox.events():
                if isinstance(event, Died):
                    return self._died(event.error)
                self._tell(event)
                if self._metrics is not None:
                    self._metrics.observe(event)
                if self._traces is not None:
                    self._traces.event(event, self._id_of, time.monotonic())
                self._handle(event)
            self._take_signals()  # after `events`, which also takes the byte with which a signal wakes
            for link, connection in enumerate(self._connections):
                if connection.socket in ready:
                    connection.heard()
                    self._read(link, connection.socket)
                self._log_handshakes(link, connection.look(time.monotonic()))
            self._perform(self._core.tick(time.monotonic()))
            if self._metrics is not None:
                self._metrics.update(self._core)
            self._notify(time.monotonic())
        self._notifier.stopping("ending")
        return self._status

    def _log_handshakes(self, link: int, news: HandshakeNews) -> None:
        endpoint = self._config.brokers[link]
        if news.refusal:
            log(_log, logging.ERROR, "refused by broker, trying on", broker=endpoint, error=news.refusal)
        elif news.suspicion:
            log(
                _log, logging.WARNING, "no handshake with broker, trying on", broker=endpoint, error=news.suspicion
            )

    def _tell(self, event: Event) -> None:
        if isinstance(event, Warm):
            self._tell_warm(event)
        elif isinstance(event, CallFailed) and event.split:
            log(
                _log, logging.WARNING, "out of memory: tried again in halves, nothing is lost", images=event.images
            )

    def _tell_warm(self, warm: Warm) -> None:
        names = ",".join(model.name for model in warm.models)
        log(_log, logging.INFO, "worker warm", device=warm.device, models=names)
        self._line = StatusLine(warm.device, len(self._config.brokers))
        self._notifier.ready(f"{names} on {warm.device}")

    def _notify(self, now: float) -> None:
        """Feed systemd's watchdog for the device thread: what it can't do for itself when it hangs."""
        if (line := self._line) is not None and now >= self._notifier.due_at:
            self._notifier.tick(now, lambda: line.text(self._core, now), self._core.step_age(now) or 0.0)

    def _wait_milliseconds(self) -> int | None:
        times = [connection.redial_at for connection in self._connections if connection.redial_at is not None]
        deadline = self._core.next_deadline()
        if deadline is not None and math.isfinite(deadline):
            times.append(deadline)
        if self._line is not None and math.isfinite(self._notifier.due_at):
            times.append(self._notifier.due_at)
        if not times:
            return None
        return max(math.ceil((min(times) - time.monotonic()) * 1000), 0)

    def _handle(self, event: Event) -> None:
        self._perform(self._core.handle(event, time.monotonic()))

    def _read(self, link: int, dealer: "zmq.Socket[bytes]") -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                header, *frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_broker_to_worker(header)
            except ProtocolError as error:
                self._handle(Malformed(link, error))
            else:
                if self._traces is not None:
                    self._traces.received(message, time.monotonic())
                self._handle(Received(link, message, tuple(frames)))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._send(action)
                case Redial():
                    self._connections[action.link].redial(time.monotonic())
                case Decode():
                    self._encoder.decode(action)
                case Cancel():
                    self._encoder.forget(action.number)
                    self._mailbox.put(action)
                case Job() | Load():
                    self._mailbox.put(action)
                case Note():
                    fields = dict(action.fields)
                    if "link" in fields:
                        fields["broker"] = self._config.brokers[fields.pop("link")]
                    log(_log, action.level, action.text, **fields)
                case Exit():
                    self._status = action.status

    def _send(self, action: Send) -> None:
        try:
            # Images are not copied; small frames are, for that is cheaper.
            self._connections[action.link].socket.send_multipart(
                (encode(action.message), *action.frames), zmq.NOBLOCK, copy=not action.frames
            )
        except zmq.Again:
            # No connection now. What is lost here the next heartbeats bring up again.
            log(
                _log,
                logging.DEBUG,
                "not sent",
                broker=self._config.brokers[action.link],
                kind=type(action.message).__name__,
            )

    def _died(self, error: BaseException) -> int:
        if isinstance(error, StartError):
            self._failure = f"the model could not be loaded: {error}"
            return error.status
        _log.error("the device thread raised", exc_info=error)
        self._failure = f"the device thread died: {type(error).__name__}: {error}"
        return 1

    # ---- sockets and signals -------------------------------------------------------------------------------

    def _serve_metrics(self, stack: contextlib.ExitStack, host: str, port: int) -> None:
        try:
            from imagegen_worker.telemetry.http import address_for_others
            from imagegen_worker.telemetry.metrics import Metrics
        except ModuleNotFoundError as error:
            raise StartError(f"--http-port: {error}; install imagegen-fleet[worker]") from error
        self._metrics = Metrics(self._config)
        try:
            bound = self._metrics.serve(host, port)
        except OSError as error:
            raise NotNowError(f"--http-port: can't bind {host}:{port}: {error}") from error
        stack.callback(self._metrics.close)
        address = address_for_others(host, bound)
        self._core.shows_metrics_at(address)
        log(_log, logging.INFO, "metrics served", address=f"http://{address}/metrics")

    def _trace(self, stack: contextlib.ExitStack, endpoint: str) -> None:
        from imagegen_worker.telemetry.tracing import Traces

        about: dict[str, Attribute] = {"host.name": socket.gethostname(), "imagegen.gpu": self._config.gpu}
        about["service.instance.id"] = self._config.worker_name
        try:
            tracer = open_tracer(endpoint, "imagegen-worker", **about)
        except TracingError as error:
            raise StartError(str(error)) from error
        self._traces = Traces(tracer)
        stack.callback(self._traces.close)

    def _id_of(self, number: int) -> bytes | None:
        held = self._core.held.by_number(number)
        return None if held is None else held.id

    def _dial(self, stack: contextlib.ExitStack) -> None:
        try:
            keys = read_dial_keys(self._config.key, self._config.broker_key)
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

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        if number != DRAIN_SIGNAL and len([n for n in self._signals if n != DRAIN_SIGNAL]) > 1:
            try:
                log(_log, logging.CRITICAL, "second signal, exiting at once", signal=signal.Signals(number).name)
                flush()
            finally:  # whatever the signal has interrupted: logging a line, for example
                os._exit(128 + number)

    def _take_signals(self) -> None:
        if self._signals and not self._core.draining:
            self._handle(DrainRequested(signal.Signals(self._signals[0]).name))

    def _end_threads(self) -> None:
        self._mailbox.put(Stop())
        if self._status == 0 and self._core.warm:
            self._device.join(JOIN_SECONDS)
            self._encoder.close()
