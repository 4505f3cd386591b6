"""mosec: worker processes behind its own server in Rust, which batches; images leave as plain bytes."""

import os
import sys
from typing import Any

from mosec import Server, Worker

from benchmarks.peers.setups.device import Device, Work
from benchmarks.peers.setups.http import measure


class Draw(Worker):
    """One device."""

    def __init__(self) -> None:
        self._device = Device(Work.of_environment())

    def forward(self, data: Any) -> Any:
        """Take one request, or a batch of them where the batch size is above 1."""
        if isinstance(data, list):
            return self._device.run([one["number"] for one in data])
        return self._device.run([data["number"]])[0]

    def serialize(self, data: bytes) -> bytes:
        """Let bytes be bytes."""
        return data


def serve() -> None:
    """Run the server."""
    work = Work.of_environment()
    server = Server()
    server.append_worker(
        Draw,
        num=len(work.speeds),
        max_batch_size=work.max_batch_size,
        max_wait_time=int(1000 * work.batch_wait),
        timeout=60,
    )
    server.run()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        del sys.argv[1:]  # its server reads them
        os.environ |= {"MOSEC_PORT": os.environ["PORT"], "MOSEC_ADDRESS": "127.0.0.1", "MOSEC_TIMEOUT": "60000"}
        serve()
    else:
        measure("benchmarks.peers.setups.mosec_peer", "/inference")
