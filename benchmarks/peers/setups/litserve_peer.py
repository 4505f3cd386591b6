"""LitServe: `workers_per_device` processes behind its FastAPI server, which batches; its queue over ZeroMQ."""

import os
import sys
from typing import Any

import litserve
from starlette.responses import Response

from benchmarks.peers.setups.device import Device, Work
from benchmarks.peers.setups.http import measure


class Draw(litserve.LitAPI):
    """One device."""

    def setup(self, device: str) -> None:
        """Open the device."""
        self._gpu = Device(Work.of_environment())

    def decode_request(self, request: dict[str, Any]) -> int:
        """Return what the model wants."""
        number: int = request["number"]
        return number

    def predict(self, x: Any) -> Any:
        """Take one request, or a batch of them where the batch size is above 1."""
        return self._gpu.run(x) if isinstance(x, list) else self._gpu.run([x])[0]

    def encode_response(self, output: bytes) -> Response:
        """Let bytes be bytes."""
        return Response(content=output, media_type="application/octet-stream")


def serve() -> None:
    """Run the server."""
    work = Work.of_environment()
    api = Draw(max_batch_size=work.max_batch_size, batch_timeout=work.batch_wait) if work.batches else Draw()
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        devices=1,
        workers_per_device=len(work.speeds),
        timeout=60,
        fast_queue=True,
        restart_workers=True,
    )
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        measure("benchmarks.peers.setups.litserve_peer", "/predict")
