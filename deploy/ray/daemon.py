"""What runs on a GPU of the cluster: an actor that starts `imagegen-worker` and waits for its end."""

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
USELESS = (2, 78)
"""Exit statuses after which a start would end in the same way: a setting is wrong, a model can't be loaded."""
_RESTART_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def _end_with(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl  # found here: between fork and exec little is safe

    def in_child() -> None:
        # Not SIGTERM, which drains: for minutes it would hold the memory of a GPU that Ray takes for free and
        # gives to the next actor. What it had goes to other workers. Its parent is, to the kernel, the thread that
        # starts it, and that waits for it.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it died before this was asked for

    return in_child


class Daemon:
    """A worker daemon on the GPU that Ray has given to this actor.

    Make it with `max_restarts=-1, max_task_retries=-1`: then Ray starts it again, on any node with a free GPU,
    when its process or its node dies, and `run` with it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        gpus = "-".join(str(number) for number in ray.get_gpu_ids())
        # With the process: the daemon of an earlier life may still be draining.
        self._name = f"{socket.gethostname()}-ray{gpus}-{os.getpid()}"
        self._command = [*command, "--gpu", "0", "--name", self._name]
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._leaving = False

    def place(self) -> tuple[str, str]:
        """Return the node's id and the worker's name."""
        return ray.get_runtime_context().get_node_id(), self._name

    def run(self) -> int:
        """Return the daemon's exit status if it has drained or is of no use; any other ends this process."""
        with self._lock:
            if self._leaving:
                return DRAINED
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with(os.getpid())
            )
        status = self._process.wait()
        if status == DRAINED or status in USELESS or self._leaving:
            return status
        print(f"{self._name} ended with status {status}, to be started again", flush=True)  # noqa: T201
        time.sleep(_RESTART_SECONDS)
        os._exit(1)

    def drain(self) -> None:
        """Have the daemon give back what has not begun, finish what runs, and end; `run` returns then."""
        with self._lock:
            first, self._leaving = not self._leaving, True
            if first and self._process is not None:
                self._process.terminate()
