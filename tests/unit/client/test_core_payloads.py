"""Client core: answers that are fetched in chunks, requests that the broker fetches, tokens."""

import pytest

from imagegen_client.events import Answer, CancelRequested, CloseRequested, Disconnected, Received, Tick
from imagegen_protocol import (
    BrokerUnreachableError,
    CancelledError,
    DeadlineExceededError,
    ProtocolError,
    RequestError,
)
from imagegen_protocol.limits import DEFAULT_INLINE_BYTES, MAX_INLINE_BYTES
from imagegen_protocol.messages import (
    Ack,
    Cancel,
    Chunk,
    ClientHeartbeat,
    Fetch,
    Goodbye,
    ImageInfo,
    Progress,
    Result,
    Stats,
    StatsQuery,
    Submit,
)
from tests.unit.client.core_harness import BODY, FIRST, SECOND, connected, rid

IMAGE = bytes(range(256)) * 400
OTHER = b"other" * 9000
P, Q = b"p" * 16, b"q" * 16


def acknowledged(harness):
    return [request_id for message in harness.take(Ack) for request_id in message.request_ids]


def arrive(harness, chunk_of, offset, data):
    harness.receive(Chunk(request_id=chunk_of, payload_id=P, offset=offset), data)


# ---- answers -----------------------------------------------------------------------------------------------


def test_an_answer_is_complete_and_acknowledged_when_all_bytes_have_arrived(harness):
    harness.submit(1, images=2)
    harness.take()
    harness.announce(rid(1), IMAGE, OTHER)
    assert not [message for message in harness.sent if isinstance(message, Ack)]
    fetches = harness.answer_fetches(IMAGE, OTHER)
    assert [bytes(frame) for frame in harness.outcomes[rid(1)].payload] == [IMAGE, OTHER]
    assert harness.outcomes[rid(1)].message.worker == "w"
    assert acknowledged(harness) == [rid(1)]
    assert fetches[0].offset == 0
    assert sum(fetch.length for fetch in fetches) == len(IMAGE) + len(OTHER)


def test_an_announced_answer_counts_as_acceptance(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.take()
    for _ in range(20):
        harness.advance_with_heartbeats(1.0)
        harness.answer_fetches(IMAGE, most=1)
    assert not harness.take(Submit)


def test_the_bytes_on_the_way_never_exceed_the_brokers_window(harness):
    harness.heartbeat(fetch_window_bytes=8192)
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    asked = received = 0
    while rid(1) not in harness.outcomes:
        for fetch in harness.take_fetches():
            asked += fetch.length
            assert asked - received <= 8192
        arrive(harness, rid(1), received, IMAGE[received : received + 1000])
        received += 1000


def test_a_repeated_header_does_not_restart_a_transfer(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.answer_fetches(IMAGE, most=2)
    before = [fetch.offset for fetch in harness.take_fetches()]
    harness.announce(rid(1), IMAGE)
    assert harness.take_fetches() == []
    assert min(before) > 0


def test_another_answer_of_the_same_request_is_fetched_anew(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.answer_fetches(IMAGE, most=2)
    harness.take()
    harness.announce(rid(1), OTHER, payload_id=Q)
    assert harness.take_fetches()[0].offset == 0
    arrive(harness, rid(1), 0, IMAGE[:10])  # a chunk of the first one
    harness.announce(rid(1), OTHER, payload_id=P)
    harness.answer_fetches(OTHER)
    assert bytes(harness.outcomes[rid(1)].payload[0]) == OTHER


def test_an_answer_that_the_broker_has_lost_is_not_fetched_until_it_is_announced_again(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    arrived = sum(fetch.length for fetch in harness.answer_fetches(IMAGE, most=2))
    harness.take()
    harness.accepted(rid(1))
    harness.advance_with_heartbeats(10.0)
    assert harness.take_fetches() == []
    harness.announce(rid(1), IMAGE)
    assert harness.take_fetches()[0].offset == arrived


def test_a_transfer_continues_if_its_next_chunk_follows_a_late_acceptance(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.take_fetches()
    arrive(harness, rid(1), 0, IMAGE[:8192])
    harness.accepted(rid(1))
    harness.take()
    arrive(harness, rid(1), 16384, IMAGE[16384:20000])
    assert harness.take_fetches() == [], "not the next chunk"
    arrive(harness, rid(1), 8192, IMAGE[8192:16384])
    assert harness.take_fetches()[0].offset == 16384
    harness.accepted(rid(1))
    harness.heartbeat(epoch=SECOND)
    arrive(harness, rid(1), 16384, IMAGE[16384:20000])
    assert harness.take_fetches() == [], "a chunk of the session before"


def test_an_answer_whose_chunks_are_lost_is_asked_for_again(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.answer_fetches(IMAGE, most=1)
    arrived = harness.take_fetches()[0].offset
    harness.advance_with_heartbeats(2.9)
    assert harness.take_fetches() == []
    harness.advance_with_heartbeats(3.1)
    assert harness.take_fetches()[0].offset <= arrived
    harness.advance_with_heartbeats(6.1)
    harness.answer_fetches(IMAGE)
    assert isinstance(harness.outcomes[rid(1)], Answer)


def test_a_stall_is_noticed_between_two_heartbeats(harness):
    harness.heartbeat(interval=10.0)
    harness.advance(10.0)
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.advance(3.0)
    arrive(harness, rid(1), 0, IMAGE[:1000])
    for _ in range(3):
        harness.advance(9.0)
        harness.accepted()
    harness.take_fetches()
    harness.advance(3.1)
    assert harness.take_fetches()[0].offset == 1000


def test_chunks_count_as_signs_of_life():
    harness = connected(FIRST, SECOND)
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    for offset in range(0, 20_000, 1000):
        harness.advance(2.0)
        arrive(harness, rid(1), offset, IMAGE[offset : offset + 1000])
    assert harness.connections == [FIRST]
    harness.advance(3.1)
    assert harness.connections == [FIRST, SECOND]


@pytest.mark.parametrize("data", [[], [b"a", b"b"], [b""]])
def test_a_chunk_without_exactly_one_frame_is_ignored(harness, data):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.receive(Chunk(request_id=rid(1), payload_id=P, offset=0), *data)
    arrive(harness, rid(50), 0, b"of an unknown request")
    harness.answer_fetches(IMAGE)
    assert isinstance(harness.outcomes[rid(1)], Answer)


# ---- connections -------------------------------------------------------------------------------------------


def interrupted(harness):
    """Return how much of the answer to request 1 has arrived when the connection breaks."""
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    fetches = harness.answer_fetches(IMAGE, most=3)
    harness.now += 1.0
    harness.handle(Disconnected())
    harness.take()
    return fetches[-1].offset + fetches[-1].length


def test_a_transfer_continues_on_a_new_connection_once_the_header_arrives():
    harness = connected()
    arrived = interrupted(harness)
    harness.heartbeat()
    assert harness.take_fetches() == [], "another broker may not have the answer"
    assert rid(1) in [message.request_id for message in harness.take(Submit)]
    harness.announce(rid(1), IMAGE)
    fetches = harness.answer_fetches(IMAGE)
    assert fetches[0].offset == arrived
    assert fetches[0].token == b"", "tokens belong to a connection"
    assert bytes(harness.outcomes[rid(1)].payload[0]) == IMAGE


def test_a_transfer_of_another_answer_starts_anew_on_a_new_connection():
    harness = connected()
    interrupted(harness)
    harness.heartbeat()
    harness.announce(rid(1), OTHER, payload_id=Q)
    assert harness.answer_fetches(OTHER)[0].offset == 0
    assert bytes(harness.outcomes[rid(1)].payload[0]) == OTHER


@pytest.mark.parametrize("change", [{"session": 2}, {"epoch": b"f" * 16}])
def test_a_transfer_continues_in_a_new_session(harness, change):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    last = harness.answer_fetches(IMAGE, most=3)[-1]
    harness.take()
    harness.heartbeat(**change)
    assert harness.take_fetches() == []
    harness.announce(rid(1), IMAGE)
    assert harness.take_fetches()[0].offset == last.offset + last.length


def test_a_process_that_slept_keeps_what_has_arrived_and_the_token(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    last = harness.answer_fetches(IMAGE, most=3)[-1]
    harness.take()
    harness.now += 100.0
    harness.heartbeat()
    assert rid(1) in [message.request_id for message in harness.take(Submit)]
    harness.announce(rid(1), IMAGE)
    fetch = harness.take_fetches()[0]
    assert fetch.offset == last.offset + last.length
    assert fetch.token, "otherwise the broker counts the bytes as outstanding for ever"


def test_the_window_starts_small_on_each_connection():
    harness = connected()
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.answer_fetches(IMAGE)
    harness.submit(2)
    assert harness.take(Submit)[-1].inline_bytes > DEFAULT_INLINE_BYTES
    harness.advance(3.1)
    harness.heartbeat()
    harness.submit(3)
    assert harness.take(Submit)[-1].inline_bytes == DEFAULT_INLINE_BYTES


def test_the_inline_limit_follows_the_speed_of_the_link(harness):
    harness.submit(1)
    assert harness.take(Submit)[0].inline_bytes == DEFAULT_INLINE_BYTES
    harness.announce(rid(1), IMAGE * 10)
    harness.answer_fetches(IMAGE * 10)
    harness.submit(2)
    assert harness.take(Submit)[-1].inline_bytes == MAX_INLINE_BYTES


# ---- headers that are no valid answers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"frame_bytes": [5]},
        {"frame_bytes": [5, 5], "payload_id": P},
        {"frame_bytes": [0], "payload_id": P},
        {"payload_id": P},
    ],
    ids=["no id", "too many", "empty", "neither"],
)
def test_a_malformed_header_is_a_protocol_error(harness, fields):
    harness.submit(1)
    harness.take()
    info = [ImageInfo(format="png", width=1, height=1, seed=1)]
    harness.receive(Result(request_id=rid(1), worker="w", model="m", images=info, **fields))
    assert isinstance(harness.outcomes[rid(1)], ProtocolError)
    assert harness.take() == [Ack(request_ids=[rid(1)])]


def test_frames_beside_their_sizes_are_a_protocol_error(harness):
    harness.submit(1)
    info = [ImageInfo(format="png", width=1, height=1, seed=1)]
    header = Result(request_id=rid(1), worker="w", model="m", images=info, payload_id=P, frame_bytes=[5])
    harness.receive(header, b"image")
    assert isinstance(harness.outcomes[rid(1)], ProtocolError)


def test_more_images_than_requested_are_not_fetched(harness):
    harness.submit(1)
    harness.take()
    harness.announce(rid(1), *[IMAGE] * 60)
    assert harness.take() == [Ack(request_ids=[rid(1)])]
    assert "expected 1 to 1 images, got 60" in harness.outcomes[rid(1)].message


# ---- ends --------------------------------------------------------------------------------------------------


def test_a_deadline_during_a_transfer_ends_the_request_and_frees_the_answer(harness):
    harness.submit(1, timeout_seconds=5.0)
    harness.announce(rid(1), IMAGE)
    arrive(harness, rid(1), 0, IMAGE[:1000])
    harness.take()
    harness.advance_with_heartbeats(6.1)
    assert isinstance(harness.outcomes[rid(1)], DeadlineExceededError)
    assert f"1000 of {len(IMAGE)} bytes of the answer have arrived within 5 s" in str(harness.outcomes[rid(1)])
    assert acknowledged(harness) == [rid(1)]
    harness.take_fetches()
    harness.advance_with_heartbeats(20.0)
    assert harness.take_fetches() == []


def test_cancelling_during_a_transfer_ends_the_request_and_frees_the_answer(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.take()
    harness.cancel(1)
    assert isinstance(harness.outcomes[rid(1)], CancelledError)
    assert harness.take() == [Ack(request_ids=[rid(1)])]
    arrive(harness, rid(1), 0, IMAGE[:1000])
    assert harness.take() == []


def test_an_answer_that_arrives_after_a_cancel_is_not_fetched(harness):
    harness.submit(1)
    harness.cancel(1)
    assert Cancel(request_id=rid(1)) in harness.take()
    harness.announce(rid(1), IMAGE)
    assert isinstance(harness.outcomes[rid(1)], CancelledError)
    assert harness.take() == [Ack(request_ids=[rid(1)])]


def test_an_error_during_a_transfer_ends_the_request(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.take()
    harness.error(rid(1))
    assert isinstance(harness.outcomes[rid(1)], RequestError)
    arrive(harness, rid(1), 0, IMAGE[:1000])
    assert harness.take() == [Ack(request_ids=[rid(1)])]


def test_closing_during_a_transfer_says_goodbye(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.take()
    harness.close()
    assert [type(message) for message in harness.take()] == [Goodbye]
    assert harness.core.handle(CloseRequested(), harness.now) == []
    assert harness.core.handle(CancelRequested(rid(1)), harness.now) == []


# ---- statistics --------------------------------------------------------------------------------------------


def test_large_statistics_are_fetched(harness):
    harness.stats(1)
    harness.take()
    harness.announce_stats(rid(1), OTHER)
    harness.answer_fetches(OTHER)
    assert bytes(harness.outcomes[rid(1)].payload[0]) == OTHER
    assert isinstance(harness.outcomes[rid(1)].message, Stats)
    assert harness.take(Ack) == []


def test_statistics_that_stall_are_queried_again(harness):
    harness.stats(1, timeout=30.0)
    harness.announce_stats(rid(1), OTHER)
    harness.take()
    harness.advance_with_heartbeats(2.5)
    assert harness.take(StatsQuery) == []
    harness.advance_with_heartbeats(1.0)
    assert harness.take(StatsQuery) == [StatsQuery(request_id=rid(1))]
    harness.announce_stats(rid(1), IMAGE, payload_id=Q)
    harness.answer_fetches(IMAGE)
    assert bytes(harness.outcomes[rid(1)].payload[0]) == IMAGE


def test_a_timeout_of_fetched_statistics_states_what_has_arrived(harness):
    harness.stats(1, timeout=5.0)
    harness.announce_stats(rid(1), OTHER)
    harness.advance_with_heartbeats(5.1)
    assert isinstance(harness.outcomes[rid(1)], BrokerUnreachableError)
    assert f"0 of {len(OTHER)} bytes" in harness.outcomes[rid(1)].message
    assert harness.take(Ack) == []


# ---- requests that the broker fetches ----------------------------------------------------------------------


def fetch_of(request_id, offset=0, length=1_000_000, **fields):
    return Fetch(request_id=request_id, payload_id=request_id, offset=offset, length=length, **fields)


def test_a_small_payload_is_sent_inline(harness):
    harness.submit(1, (BODY, bytes(DEFAULT_INLINE_BYTES - len(BODY))))
    (message,) = harness.take()
    assert message.frame_bytes == []
    assert sum(map(len, harness.payloads[rid(1)])) == DEFAULT_INLINE_BYTES


def test_a_large_payload_is_fetched_by_the_broker(harness):
    harness.submit(1, (BODY, IMAGE))
    (message,) = harness.take()
    assert message.frame_bytes == [len(BODY), len(IMAGE)]
    assert harness.payloads[rid(1)] == ()
    harness.receive(fetch_of(rid(1), 0, 10_000, chunk_bytes=4096))
    harness.receive(fetch_of(rid(1), 10_000))
    assert b"".join(data for _, data in harness.sent_chunks) == BODY + IMAGE
    assert [len(data) for _, data in harness.sent_chunks[:3]] == [4096, 4096, 10_000 - 8192]
    assert [chunk.offset for chunk, _ in harness.sent_chunks[:3]] == [0, 4096, 8192]


def test_a_retry_after_overloaded_is_fetched_under_its_new_id():
    harness = connected(retry_overloaded=True)
    harness.submit(1, (BODY, IMAGE))
    harness.error(rid(1), "overloaded", 1.0)
    harness.take()
    harness.receive(fetch_of(rid(1)))
    assert harness.sent_chunks == [], "the old id is unknown"
    harness.advance_with_heartbeats(2.1)
    request_id = harness.take(Submit)[0].request_id
    harness.receive(fetch_of(request_id))
    assert b"".join(data for _, data in harness.sent_chunks) == BODY + IMAGE


@pytest.mark.parametrize(
    "fetch",
    [
        fetch_of(rid(7)),
        Fetch(request_id=rid(1), payload_id=P, offset=0, length=5),
        fetch_of(rid(2)),
        fetch_of(rid(1), 10**9),
    ],
    ids=["unknown", "another payload", "statistics", "beyond the end"],
)
def test_a_fetch_of_something_else_is_ignored(harness, fetch):
    harness.submit(1, (BODY, IMAGE))
    harness.stats(2)
    harness.receive(fetch)
    assert harness.sent_chunks == []


def test_a_fetched_request_is_sent_again_as_a_header(harness):
    harness.submit(1, (BODY, IMAGE))
    harness.take()
    harness.heartbeat(session=2)
    message = harness.take()[-1]
    assert message.request_id == rid(1)
    assert message.frame_bytes == [len(BODY), len(IMAGE)]
    assert harness.payloads[rid(1)] == ()


# ---- tokens ------------------------------------------------------------------------------------------------


def preview(number, request_id=b"", token=b"t" * 16):
    request_id = request_id or rid(99)
    return Received(Progress(request_id=request_id, step=number, steps=9, token=token), (b"preview",))


def test_a_preview_is_confirmed_by_one_heartbeat_per_read(harness):
    harness.take(ClientHeartbeat)
    for number in range(5):
        harness.core.handle(preview(number, token=bytes([number]) * 16), harness.now)
    sent = [action.message for action in harness.core.handle(Tick(), harness.now)]
    assert sent == [ClientHeartbeat(token=b"\x04" * 16)]
    assert harness.core.handle(Tick(), harness.now) == []


def test_a_progress_message_without_a_token_needs_no_heartbeat(harness):
    harness.take(ClientHeartbeat)
    harness.progress(rid(99))
    assert harness.take(ClientHeartbeat) == []


def test_an_acknowledgement_confirms_a_preview(harness):
    harness.take(ClientHeartbeat)
    harness.submit(1)
    harness.core.handle(preview(1), harness.now)
    harness.result(rid(1))
    assert harness.take(Ack) == [Ack(request_ids=[rid(1)], token=b"t" * 16)]
    assert harness.take(ClientHeartbeat) == []


def test_the_last_token_is_in_every_message_that_can_carry_it(harness):
    harness.submit(1)
    harness.announce(rid(1), IMAGE)
    harness.answer_fetches(IMAGE, most=4)
    assert harness.take_fetches()[-1].token
    harness.take(ClientHeartbeat)
    harness.advance(1.0)
    assert harness.take(ClientHeartbeat) == [ClientHeartbeat(token=harness.token)]
    harness.result(rid(99))
    assert harness.take(Ack) == [Ack(request_ids=[rid(99)], token=harness.token)]


def test_the_token_of_a_preview_of_an_unknown_request_is_confirmed(harness):
    harness.take(ClientHeartbeat)
    harness.handle(preview(1, rid(55)))
    assert harness.take(ClientHeartbeat) == [ClientHeartbeat(token=b"t" * 16)]


def test_a_receive_maximum_is_announced():
    harness = connected(receive_maximum=3)
    harness.advance(1.0)
    assert harness.sent == [ClientHeartbeat(receive_maximum=3)]
