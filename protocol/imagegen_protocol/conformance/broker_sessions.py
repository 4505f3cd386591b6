"""Checks of a broker: sessions, encodings and violations."""

import struct
from itertools import pairwise
from typing import Any

import msgpack
import zmq

from imagegen_protocol.conformance.broker_bench import BODY, IMAGE, BrokerBench, Client, Peer
from imagegen_protocol.conformance.peers import has, lists, new_id
from imagegen_protocol.conformance.report import Checks, NotTested, expect
from imagegen_protocol.errors import (
    GenerationFailedError,
    InvalidRequestError,
    ProtocolError,
    UnsupportedVersionError,
)
from imagegen_protocol.limits import MAX_CHUNK_BYTES, MAX_FRAMES, MAX_IDS_PER_MESSAGE, VERSION
from imagegen_protocol.messages import Ack, Cancel, ClientHeartbeat, Error, Release, Submit, WorkerHeartbeat

CHECKS: Checks[BrokerBench] = Checks()


@CHECKS("R-1.2", "unknown keys are ignored")
def unknown_keys(bench: BrokerBench) -> str:
    """Send HEARTBEAT and SUBMIT with keys of a later version."""
    client, worker = bench.connected_client(), bench.registered_worker()
    request_id = new_id()
    client.send({"type": "heartbeat", "later": [1, {"a": None}]})
    client.send({"type": "submit", "request_id": request_id, "model": bench.model, "later": b"x"}, BODY)
    client.accepted(request_id)
    worker.work(request_id)
    return "accepted"


@CHECKS("R-1.3", "wide encodings are accepted")
def wide_encodings(bench: BrokerBench) -> str:
    """Send SUBMIT as a map of 32 bits with ints of 64 bits and a float of 32 bits."""
    client, worker = bench.connected_client(), bench.registered_worker()
    request_id = new_id()
    values = {
        "type": msgpack.packb("submit"),
        "v": b"\xcf" + struct.pack(">Q", VERSION),
        "request_id": b"\xc6" + struct.pack(">I", len(request_id)) + request_id,
        "model": b"\xdb" + struct.pack(">I", len(bench.model)) + bench.model.encode(),
        "priority": b"\xd3" + struct.pack(">q", -3),
        "timeout_seconds": b"\xca" + struct.pack(">f", 64.0),
    }
    header = b"\xdf" + struct.pack(">I", len(values))
    client.send_header(header + b"".join(msgpack.packb(key) + value for key, value in values.items()), BODY)
    client.accepted(request_id)
    work, _ = worker.work(request_id)
    seconds = work.timeout_seconds
    expect(seconds is not None and 0 < seconds <= 64, f"WORK has timeout_seconds {seconds}, SUBMIT had 64")
    return f"accepted; timeout_seconds {seconds}"


@CHECKS("R-1.5", "a long list of ids arrives in several messages")
def long_lists(bench: BrokerBench) -> str:
    """Send an ACK with too many ids, and one with as many as are allowed."""
    client = bench.connected_client()
    client.send({"type": "ack", "request_ids": [new_id()] * (MAX_IDS_PER_MESSAGE + 1)})
    client.error(None, ProtocolError.code)
    client.send(Ack(request_ids=[new_id()] * MAX_IDS_PER_MESSAGE))
    client.wait_for_heartbeats(2)
    expect(client.take(Error) is None, "an ACK of 1,024 ids was rejected")
    return "1,024 accepted, 1,025 rejected"


@CHECKS("R-1.7", "a routing id that is in use is not taken over")
def routing_id_in_use(bench: BrokerBench) -> str:
    """Connect twice under one routing id."""
    routing_id = new_id()
    first = bench.client(routing_id)
    first.wait_for_heartbeats(1)
    second = bench.client(routing_id)
    first.wait_for_heartbeats(3)
    expect(not second.heartbeats, "the second connection was answered")
    second.disconnect()
    return "the second connection was not answered"


@CHECKS("R-4.1", "the first message is answered with HEARTBEAT")
def first_message(bench: BrokerBench) -> str:
    """Connect, send a heartbeat, and connect with SUBMIT as the first message."""
    client = bench.connected_client()
    heartbeat = client.heartbeat
    expect(heartbeat is not None and heartbeat.session > 0, "session 0")
    other = bench.client()
    other.is_alive = False
    other.send(Submit(request_id=new_id(), model=bench.model), BODY)
    other.wait_for_heartbeats(1)
    assert heartbeat is not None
    return f"session {heartbeat.session}, {heartbeat.liveness} intervals of {heartbeat.interval_seconds:g} s"


@CHECKS("R-4.2", "the broker sends a HEARTBEAT in each interval")
def heartbeats(bench: BrokerBench) -> str:
    """Count heartbeats."""
    client = bench.connected_client()
    start = len(client.heartbeats)
    client.wait_for_heartbeats(4)
    times = [each.at for each in client.heartbeats[start - 1 :]]
    longest = max(later - earlier for earlier, later in pairwise(times))
    expect(longest < client.silence, f"{longest:.2f} s between two heartbeats")
    sessions = {(each.message.epoch, each.message.session) for each in client.heartbeats}  # type: ignore[attr-defined]
    expect(len(sessions) == 1, f"{len(sessions)} sessions")
    return f"at most {longest:.2f} s apart"


@CHECKS("R-4.2", "a silent client counts as dead")
def silent_client(bench: BrokerBench) -> str:
    """Send nothing, and check that the session ends."""
    client = bench.connected_client()
    assert client.heartbeat is not None
    before = client.heartbeat.session
    client.is_alive = False
    bench.wait(client.silence + 4 * client.interval)
    client.is_alive = True
    bench.until(
        lambda: client.heartbeat is not None and client.heartbeat.session != before,
        f"expected another session after {client.silence:g} s of silence",
    )
    return f"another session after {client.silence:g} s"


@CHECKS("R-4.3", "GOODBYE and death of a client release its requests")
def abandoned(bench: BrokerBench) -> str:
    """Leave while a request is at a worker."""
    client, worker, request_id = bench.dispatched()
    client.leave()
    bench.receive(worker, Release, lists(request_id))
    worker.forget(request_id)
    client = bench.connected_client()
    request_id = client.submit(bench.model)
    worker.work(request_id)
    client.is_alive = False
    seconds = client.silence + 2 * client.interval + bench.patience
    bench.receive(worker, Release, lists(request_id), seconds=seconds)
    return "RELEASE after both"


@CHECKS("R-4.5", "another run of the broker has another epoch")
def epochs(bench: BrokerBench) -> str:
    """Not tested: this needs a restart of the broker."""
    raise NotTested("needs a restart of the broker")


@CHECKS("R-9.1", "a header that can't be read is answered with protocol_error")
def unreadable_headers(bench: BrokerBench) -> str:
    """Send unreadable headers on both ports."""
    client, worker = bench.connected_client(), bench.registered_worker()
    request_id = new_id()
    cases: list[tuple[dict[str, Any], bytes | None]] = [
        ({"type": "dance", "request_id": request_id}, request_id),
        ({"type": "submit", "request_id": request_id, "priority": 101}, request_id),
        ({"type": "submit", "request_id": request_id, "priority": 1.5}, request_id),
        ({"type": "submit", "request_id": request_id, "timeout_seconds": float("nan")}, request_id),
        ({"type": "submit", "request_id": "0123456789abcdef"}, None),
        ({"type": "submit"}, None),
    ]
    for fields, expected in cases:
        client.send(fields, BODY)
        client.error(expected, ProtocolError.code)
    client.send_header(b"\xc1")
    client.error(None, ProtocolError.code)
    for kind in ("dance", "heartbeat", "submit"):
        worker.send({"type": kind, "session": -1})
        bench.receive(worker, Error, has(code=ProtocolError.code))
    _still_works(bench, client)
    return f"{len(cases) + 4} ERRORs, and the broker continues"


@CHECKS("R-9.2", "another version, or none, is answered with unsupported_version")
def versions(bench: BrokerBench) -> str:
    """Send messages with a wrong version and without one on both ports."""
    client, worker = bench.connected_client(), bench.registered_worker()
    cases: list[tuple[Peer, dict[str, Any]]] = [(client, {}), (worker, {"session": 1})]
    for peer, fields in cases:
        for version in ({}, {"v": 1}, {"v": VERSION + 1}):
            peer.send_header(msgpack.packb({"type": "heartbeat", **fields, **version}))
            error, _ = bench.receive(peer, Error, what=f"expected ERROR for the version {version}")
            expect(error.code == UnsupportedVersionError.code, f"ERROR {error.code} for the version {version}")
    return "none, 1 and 3 rejected on both ports"


@CHECKS("R-9.1", "unreadable messages are no sign of life")
def no_sign_of_life(bench: BrokerBench) -> str:
    """Send nothing but unreadable messages."""
    client = bench.connected_client()
    assert client.heartbeat is not None
    before = client.heartbeat.session
    client.is_alive = False
    for _ in range(2 * client.heartbeat.liveness + 4):
        client.send({"type": "dance"})
        bench.wait(client.interval / 2)
    client.is_alive = True
    bench.until(
        lambda: client.heartbeat is not None and client.heartbeat.session != before, "expected another session"
    )
    return "the session ended"


@CHECKS("R-9.4", "an unreadable RESULT ends the request with generation_failed")
def unreadable_results(bench: BrokerBench) -> str:
    """Answer requests with results that break the protocol."""
    client, worker = bench.connected_client(), bench.registered_worker()
    bad: list[tuple[str, dict[str, Any]]] = [
        ("a negative width", {"images": [{"format": "png", "width": -1, "height": 1, "seed": 7}]}),
        ("two descriptions of one frame", {"images": [{"format": "png", "width": 1, "height": 1, "seed": 7}] * 2}),
        ("frames and frame_bytes", {"frame_bytes": [100], "payload_id": new_id()}),
    ]
    for what, keys in bad:
        request_id = client.submit(bench.model)
        worker.work(request_id)
        worker.answer(request_id, IMAGE, **keys)
        error = client.error(request_id, GenerationFailedError.code)
        bench.receive(worker, Release, lists(request_id), what=f"{what}: RELEASE")
        worker.forget(request_id)
        client.ack(request_id)
    return f"{len(bad)} requests ended; {error.message[:80]}"


@CHECKS("R-9.5", "a frame that is too long closes the connection only")
def long_frame(bench: BrokerBench) -> str:
    """Send a frame of one byte more than is allowed."""
    client, other = bench.connected_client(), bench.connected_client()
    client.is_alive = False
    monitor = client.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    client.send(Submit(request_id=new_id(), model=bench.model), b"\0" * (MAX_CHUNK_BYTES + 1))
    closed = monitor.poll(int(bench.patience * 1000))
    client.socket.disable_monitor()
    monitor.close(0)
    expect(closed, "the connection stayed open")
    _still_works(bench, other)
    client.disconnect()
    return "closed; other clients continue"


@CHECKS("R-9.6", "a message of too many frames is answered with protocol_error")
def too_many_frames(bench: BrokerBench) -> str:
    """Send a SUBMIT of 67 frames."""
    client = bench.connected_client()
    request_id = new_id()
    client.send(Submit(request_id=request_id, model=bench.model), *[b"x"] * MAX_FRAMES)
    error, _ = bench.receive(client, Error)
    expect(error.request_id == request_id, "the ERROR has no request_id")
    _still_works(bench, client)
    return f"{error.code}: {error.message[:60]}"


@CHECKS("R-9.7", "a SUBMIT without a valid payload is answered with invalid_request")
def invalid_payloads(bench: BrokerBench) -> str:
    """Send payloads that break R-2.1."""
    client = bench.connected_client()
    bench.registered_worker()
    cases: list[tuple[dict[str, object], list[bytes]]] = [
        ({}, []),
        ({"frame_bytes": [10]}, [BODY]),
        ({"frame_bytes": [262_145]}, []),
        ({}, [b"x" * 65_537]),
    ]
    for keys, frames in cases:
        request_id = new_id()
        client.send({"type": "submit", "request_id": request_id, "model": bench.model, **keys}, *frames)
        client.error(request_id, InvalidRequestError.code)
    return f"{len(cases)} rejected"


@CHECKS("R-9.14", "CANCEL and ACK for another client's request are ignored")
def foreign_ids(bench: BrokerBench) -> str:
    """Cancel and acknowledge the request of another client."""
    client, worker, request_id = bench.dispatched()
    other = bench.connected_client()
    other.send(Cancel(request_id=request_id))
    other.ack(request_id)
    other.wait_for_heartbeats(1)
    worker.answer(request_id, IMAGE)
    client.result(request_id)
    expect(other.take(Error) is None, "the other client got an ERROR")
    return "ignored"


@CHECKS("R-9.15", "an unknown worker is told to register")
def unknown_worker(bench: BrokerBench) -> str:
    """Send a HEARTBEAT without READY."""
    worker = bench.worker()
    worker.send(WorkerHeartbeat(session=1))
    worker.wait_for_heartbeats(1)
    assert worker.heartbeat is not None
    expect(worker.heartbeat.session == 0, f"session {worker.heartbeat.session} without READY")
    return "HEARTBEAT with session 0"


def _still_works(bench: BrokerBench, peer: Peer) -> None:
    """Check that the broker still answers a peer."""
    expect(isinstance(peer, Client), "a client is expected")
    peer.send(ClientHeartbeat())
    peer.wait_for_heartbeats(1)
