"""The actor on a GPU of the cluster: it starts `imagegen-worker` and waits for its exit."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from threading import Lock

import ray

DRAINED = 0
PERMANENT_FAILURES = (2, 78)
"""Exit statuses that a restart would repeat: a setting is wrong, a model can't be loaded."""
_RESTART_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def _end_with(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl  # resolved here: few calls are safe between fork and exec

    def in_child() -> None:
        # Not SIGTERM, which drains: the daemon would hold memory of the GPU for minutes, while Ray assigns the GPU
        # to the next actor. Its requests are requeued. To the kernel, the parent is the thread that starts the
        # daemon and waits for it.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before prctl took effect

    return in_child


class Daemon:
    """A worker daemon on the GPU that Ray has assigned to this actor.

    Create it with `max_restarts=-1, max_task_retries=-1`: when its process or its node dies, Ray restarts it on
    any node with a free GPU and calls `run` again.
    """

    def __init__(self, command: Sequence[str]) -> None:
        gpus = "-".join(str(number) for number in ray.get_gpu_ids())
        # Contains the process id, because the previous daemon may still be draining.
        self._name = f"{socket.gethostname()}-ray{gpus}-{os.getpid()}"
        self._command = [*command, "--gpu", "0", "--name", self._name]
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._leaving = False

    def place(self) -> tuple[str, str]:
        """Return the node's id and the worker's name."""
        return ray.get_runtime_context().get_node_id(), self._name

    def run(self) -> int:
        """Return the daemon's exit status after a drain or a permanent failure; otherwise end this process."""
        with self._lock:
            if self._leaving:
                return DRAINED
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with(os.getpid())
            )
        status = self._process.wait()
        if status == DRAINED or status in PERMANENT_FAILURES or self._leaving:
            return status
        print(f"{self._name} exited with status {status}, restart scheduled", flush=True)  # noqa: T201
        time.sleep(_RESTART_SECONDS)
        os._exit(1)

    def drain(self) -> None:
        """Drain the daemon: it returns waiting requests, finishes running ones and exits; then `run` returns."""
        with self._lock:
            first, self._leaving = not self._leaving, True
            if first and self._process is not None:
                self._process.terminate()
