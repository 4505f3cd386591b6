"""A worker that does nothing: it answers each WORK at once with the same small PNG."""

import io
import os
from pathlib import Path

import click
import zmq
from PIL import Image

from imagegen_protocol.frames import decode_broker_to_worker, encode
from imagegen_protocol.messages import (
    BrokerHeartbeat,
    ImageInfo,
    Ready,
    Release,
    Resend,
    Result,
    Work,
    WorkerHeartbeat,
)

MODEL = "nothing"
SIDE = 64
CAPACITY = 1024


def picture() -> bytes:
    """Return the PNG that everybody gets."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "navy").save(buffer, "PNG")
    return buffer.getvalue()


def ready(name: str) -> Ready:
    """Return the message with which it registers."""
    return Ready(
        worker_id=os.urandom(16),
        name=name,
        host="here",
        gpu_id=0,
        device="none",
        backend="none",
        models=[MODEL],
        capacity=CAPACITY,
        max_batch_size=1,
        pid=os.getpid(),
    )


def serve(socket: "zmq.Socket[bytes]", hello: Ready) -> None:
    """Register and answer until the process is ended."""
    image, info = picture(), [ImageInfo(format="png", width=SIDE, height=SIDE, seed=0)]
    finished: dict[bytes, bytes] = {}
    socket.send(encode(hello))
    while True:
        header, *_ = socket.recv_multipart()
        match decode_broker_to_worker(header):
            case Work(request_id=request_id, attempt=attempt):
                result = Result(
                    request_id=request_id, attempt=attempt, worker=hello.name, model=MODEL, images=info
                )
                finished[request_id] = encode(result)
                socket.send_multipart([finished[request_id], image])
            case Resend(request_ids=ids):
                for request_id in ids:
                    if request_id in finished:
                        socket.send_multipart([finished[request_id], image])
            case Release(request_ids=ids):
                for request_id in ids:
                    finished.pop(request_id, None)
            case BrokerHeartbeat(session=0):
                socket.send(encode(hello))
            case BrokerHeartbeat(session=session, beat=beat):
                told = WorkerHeartbeat(session=session, beat=beat, finished=list(finished), seconds_per_image=1e-4)
                socket.send(encode(told))
            case _:  # DRAIN and errors: the process is killed at the end
                pass


@click.command()
@click.option("--broker", required=True, help="Endpoint of the broker's backend.")
@click.option("--name", required=True)
def main(broker: str, name: str) -> None:
    """Answer everything at once."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(broker)
    serve(socket, ready(name))


if __name__ == "__main__":
    main(prog_name=Path(__file__).stem)
