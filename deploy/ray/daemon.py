"""Ray actor that runs `imagegen-worker` on one GPU of the cluster."""

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
"""Exit statuses that a restart would repeat: an invalid setting, or a model that can't be loaded."""
_RESTART_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec few calls are safe

    def in_child() -> None:
        # Not SIGTERM: a draining daemon would use for minutes the memory of a GPU that Ray assigns to the next
        # actor. The broker requeues its requests. The kernel's parent is the thread that starts the daemon, which
        # also waits for it.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before prctl

    return in_child


class Daemon:
    """A worker daemon on the GPU that Ray has assigned to this actor.

    Create it with `max_restarts=-1, max_task_retries=-1`: then Ray restarts the actor and `run`, on any node with
    a free GPU, when its process or its node dies.
    """

    def __init__(self, command: Sequence[str]) -> None:
        gpus = "-".join(str(number) for number in ray.get_gpu_ids())
        # The process id, because a previous daemon may still be draining.
        self._name = f"{socket.gethostname()}-ray{gpus}-{os.getpid()}"
        self._command = [*command, "--gpu", "0", "--name", self._name]
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._draining = False

    def location(self) -> tuple[str, str]:
        """Return the id of the node and the name of the worker."""
        return ray.get_runtime_context().get_node_id(), self._name

    def run(self) -> int:
        """Run the daemon; return its status if it drained or failed permanently, else end this process."""
        with self._lock:
            if self._draining:
                return DRAINED
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with(os.getpid())
            )
        status = self._process.wait()
        if status == DRAINED or status in PERMANENT_FAILURES or self._draining:
            return status
        print(f"worker exited, restarting worker={self._name} status={status}", flush=True)  # noqa: T201
        time.sleep(_RESTART_SECONDS)
        os._exit(1)

    def drain(self) -> None:
        """Make the daemon return queued requests, finish running ones and exit; then `run` returns."""
        with self._lock:
            first, self._draining = not self._draining, True
            if first and self._process is not None:
                self._process.terminate()
