"""A file with the addresses of the workers' metrics, for the file-based discovery of Prometheus (file_sd)."""

import json
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Event, Thread

from imagegen_common.addresses import ConfigError
from imagegen_common.files import replacing
from imagegen_common.logs import log
from imagegen_protocol.endpoints import is_loopback
from imagegen_protocol.messages import Ready

_log = logging.getLogger("imagegen.broker")

_RETRY_SECONDS = 5.0
_CLOSING_SECONDS = 2.0


def target_groups(workers: Iterable[Ready], here: str) -> list[dict[str, object]]:
    """Return one group of targets per host, for a Prometheus on the host named `here`.

    Workers without HTTP are omitted, and workers on other hosts that serve HTTP on loopback only.
    """
    hosts: dict[str, list[str]] = {}
    for worker in workers:
        if worker.http is None:
            continue
        if worker.host == here or not is_loopback(worker.http.rpartition(":")[0]):
            hosts.setdefault(worker.host, []).append(worker.http)
    return [{"targets": sorted(hosts[host]), "labels": {"host": host}} for host in sorted(hosts)]


def check_targets_path(path: Path) -> Path:
    """Return the path. Raises `ConfigError` if it can't be written, or Prometheus would not read it."""
    if path.suffix != ".json":
        raise ConfigError(f"--prometheus-targets: {path} must end in .json, otherwise Prometheus ignores it")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--prometheus-targets: can't write {path}: {path.parent} is not a writable folder")
    if path.is_dir():
        raise ConfigError(f"--prometheus-targets: can't write {path}: it is a folder")
    return path


class TargetsFile:
    """Writes the file on a separate thread, so that a slow disk does not block the broker."""

    def __init__(self, path: Path, retry_seconds: float = _RETRY_SECONDS) -> None:
        self._path = path
        self._retry_seconds = retry_seconds
        self._here = socket.gethostname()
        self._workers: Sequence[Ready] | None = None
        """The latest; a list of its own for each call of `show`."""
        self._changed = Event()
        self._closing = False
        self._thread = Thread(target=self._run, name="targets", daemon=True)
        self._thread.start()

    def show(self, workers: Sequence[Ready]) -> None:
        """Write these workers to the file soon. Never blocks."""
        self._workers = workers
        self._changed.set()

    def close(self) -> None:
        """Write the latest workers, if that succeeds soon, and stop the thread."""
        self._closing = True
        self._changed.set()
        self._thread.join(_CLOSING_SECONDS)

    def _run(self) -> None:
        written: Sequence[Ready] | None = None
        while not self._closing or written is not self._workers:
            self._changed.wait(None if written is self._workers else self._retry_seconds)
            self._changed.clear()
            closing, latest = self._closing, self._workers
            if latest is not None and latest is not written and self._write(target_groups(latest, self._here)):
                written = latest
            if closing:
                return

    def _write(self, groups: list[dict[str, object]]) -> bool:
        try:
            with replacing(self._path) as temporary:
                temporary.write_text(json.dumps(groups, indent=2) + "\n")
                temporary.chmod(0o644)  # Prometheus is another user, and a service's umask may be strict
        except OSError as error:
            log(
                _log,
                logging.ERROR,
                "writing Prometheus targets failed",
                path=self._path,
                error=error,
            )
            return False
        return True
