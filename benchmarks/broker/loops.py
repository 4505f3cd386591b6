"""What the broker is measured against, each a process of its own: `python -m benchmarks.broker.loops NAME`.

Both print their endpoints, and forward without end: no heartbeats, no books, no acknowledgements, no metrics.
"""

import sys
from collections import deque

import zmq


def proxy(frontend: "zmq.Socket[bytes]", backend: "zmq.Socket[bytes]") -> None:
    """Forward in C, as libzmq's own proxy does: nothing that speaks ZeroMQ on one thread is faster."""
    zmq.proxy(frontend, backend)


def bare(frontend: "zmq.Socket[bytes]", backend: "zmq.Socket[bytes]") -> None:
    """Forward in Python, as the guide's load-balancing broker does, to the least recently used worker.

    A worker begins with a message of one frame, and may have any number of requests.
    """
    workers: deque[bytes] = deque()
    poller = zmq.Poller()
    poller.register(backend, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if backend in ready:
            for worker, client, *rest in _drained(backend):
                if rest:
                    frontend.send_multipart([client, *rest])
                else:
                    workers.append(worker)
            if workers and frontend not in poller:
                poller.register(frontend, zmq.POLLIN)
        if frontend in ready:
            for frames in _drained(frontend):
                backend.send_multipart([workers[0], *frames])
                workers.rotate(-1)


def _drained(socket: "zmq.Socket[bytes]") -> list[list[bytes]]:
    messages = []
    for _ in range(256):
        try:
            messages.append(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            break
    return messages


def main(name: str) -> None:
    """Bind on free ports and forward."""
    context = zmq.Context()
    frontend = context.socket(zmq.ROUTER)
    backend = context.socket(zmq.DEALER if name == "proxy" else zmq.ROUTER)
    for socket in (frontend, backend):
        socket.set_hwm(0)
        socket.bind("tcp://127.0.0.1:*")
    print(*(socket.get_string(zmq.LAST_ENDPOINT) for socket in (frontend, backend)), flush=True)
    {"proxy": proxy, "bare": bare}[name](frontend, backend)


if __name__ == "__main__":
    main(sys.argv[1])
