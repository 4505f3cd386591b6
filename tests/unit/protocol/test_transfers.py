"""Payloads in chunks: slow and fast links, stalls, resumed transfers, the window, hostile senders."""

import heapq
import random
from itertools import count, pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen_protocol.limits import (
    DEFAULT_FETCH_WINDOW_BYTES,
    MAX_CHUNK_BYTES,
    MAX_FETCH_BYTES,
    MAX_INLINE_BYTES,
    MIN_CHUNK_BYTES,
)
from imagegen_protocol.messages import Chunk, Fetch
from imagegen_protocol.transfers import (
    INITIAL_WINDOW_BYTES,
    MAX_SOURCES,
    MIN_WINDOW_BYTES,
    Download,
    Downloads,
    chunks,
    sizes_of,
)

ID, OTHER_ID = b"i" * 16, b"j" * 16
P, Q = b"p" * 16, b"q" * 16


def some_bytes(length, seed=1):
    return random.Random(seed).randbytes(length)


def fetch(offset, length, chunk_bytes=MAX_CHUNK_BYTES):
    return Fetch(request_id=ID, payload_id=P, offset=offset, length=length, chunk_bytes=chunk_bytes)


def chunk(offset, request_id=ID, payload_id=P, token=b""):
    return Chunk(request_id=request_id, payload_id=payload_id, offset=offset, token=token)


class Network:
    """A sender behind a link that transfers `rate` bytes a second; messages take `latency` in each direction."""

    def __init__(self, rate, latency=0.01, header=100):
        self.now = 0.0
        self.receiver = Downloads()
        self.payloads = {}
        self.fetches = []
        self.complete = {}
        self.longest_queue = 0.0
        """Maximum seconds for which another message would have waited behind the chunks."""
        self._rate, self._latency, self._header = rate, latency, header
        self._free_at = 0.0
        self._numbers = count()
        self._events = []

    def add(self, request_id, frames, payload_id=P):
        self.payloads[request_id] = frames
        self.receiver.add(Download(request_id, payload_id, sizes_of(frames)))

    def run(self, until):
        """Let time pass until `until()` is true; fails if nothing happens any more."""
        self._ask()
        while not until():
            due = self._events[0][0] if self._events else float("inf")
            wake = self.receiver.deadline()
            assert min(due, wake) != float("inf"), "the transfer has stopped"
            self.now = max(self.now, min(due, wake))
            assert self.now < 1e5, "the transfer takes for ever"
            if due <= wake:
                _, _, what, *arguments = heapq.heappop(self._events)
                what(*arguments)
            self._ask()

    def finish(self, number=1):
        self.run(lambda: len(self.complete) == number)

    def _at(self, time, what, *arguments):
        heapq.heappush(self._events, (time, next(self._numbers), what, *arguments))

    def _ask(self):
        for message in self.receiver.fetches(self.now):
            assert self.receiver.outstanding <= self.receiver.window
            self.fetches.append(message)
            self._at(self.now + self._latency, self._answer, message)

    def _answer(self, message):
        for header, data in chunks(self.payloads[message.request_id], message):
            self._free_at = max(self._free_at, self.now) + (len(data) + self._header) / self._rate
            self._at(self._free_at + self._latency, self._arrive, header, data)
        self.longest_queue = max(self.longest_queue, self._free_at - self.now)

    def _arrive(self, header, data):
        download = self.receiver.on_chunk(header, data, self.now)
        if download is not None:
            self.complete[download.request_id] = [bytes(frame) for frame in download.frames()]


# ---- the sender --------------------------------------------------------------------------------------------


def test_chunks_answer_exactly_what_was_asked_for():
    frames = [b"abc", b"", b"defghij", b"k"]
    for length in (1, 3, 5, 100):
        whole = b"".join(frames)
        for offset in range(len(whole)):
            sent = list(chunks(frames, fetch(offset, length)))
            assert b"".join(bytes(data) for _, data in sent) == whole[offset : offset + length]
    assert list(chunks(frames, fetch(11, 5))) == list(chunks(frames, fetch(10**9, 5))) == []
    assert list(chunks([], fetch(0, 5))) == []


def test_chunks_are_no_longer_than_asked_for_and_name_their_payload():
    frames = [bytes(10_000), bytes(10_000)]
    sent = list(chunks(frames, fetch(1000, 15_000, chunk_bytes=4096)))
    assert [len(data) for _, data in sent] == [4096, 4096, 4096, 15_000 - 3 * 4096]
    assert [header.offset for header, _ in sent] == [1000, 5096, 9192, 13_288]
    assert {(header.request_id, header.payload_id) for header, _ in sent} == {(ID, P)}


def test_a_chunk_within_one_frame_is_not_copied():
    frame = bytearray(10_000)
    ((_, data),) = chunks([b"body", frame], fetch(4, 5000))
    frame[0] = 7
    assert data[0] == 7


# ---- transfers ---------------------------------------------------------------------------------------------


def test_frames_arrive_as_they_were_sent():
    network = Network(rate=1e6)
    frames = [some_bytes(70_000), b"x", some_bytes(300_000, 2)]
    network.add(ID, frames)
    network.finish()
    assert network.complete[ID] == frames
    assert len(network.receiver) == network.receiver.outstanding == 0
    assert network.receiver.deadline() == float("inf")
    assert network.receiver.fetches(network.now + 100) == []


@pytest.mark.parametrize("rate", [3_000, 9_000, 50_000])
def test_a_slow_link_transfers_every_byte_once_and_lets_other_messages_pass(rate):
    network = Network(rate, latency=0.1)
    frames = [some_bytes(120_000)]
    network.add(ID, frames)
    network.finish()
    assert network.complete[ID] == frames
    assert network.receiver.window <= max(MIN_WINDOW_BYTES, 2 * rate)
    assert network.longest_queue <= max(INITIAL_WINDOW_BYTES, 2 * rate) / rate * 1.1
    offsets = [message.offset for message in network.fetches]
    assert offsets == sorted(set(offsets)), "nothing is asked for twice"
    assert network.now == pytest.approx(120_000 / rate, rel=0.4)


def test_a_fast_link_is_used_with_few_messages():
    network = Network(rate=100e6, latency=0.005)
    network.add(ID, [some_bytes(24_000_000)])
    network.finish()
    assert network.receiver.window == DEFAULT_FETCH_WINDOW_BYTES
    assert len(network.fetches) < 40
    assert network.now < 0.6
    assert max(message.chunk_bytes for message in network.fetches) == MAX_CHUNK_BYTES
    assert network.receiver.inline_bytes == MAX_INLINE_BYTES


def test_several_payloads_share_the_window_and_the_oldest_is_first():
    network = Network(rate=200_000)
    frames = {bytes([number]) * 16: [some_bytes(50_000, number)] for number in range(5)}
    for request_id, payload in frames.items():
        network.add(request_id, payload)
    network.finish(5)
    assert network.complete == frames
    assert list(network.complete) == list(frames)


def test_a_link_that_becomes_slow_shrinks_the_window():
    network = Network(rate=10e6)
    network.add(ID, [some_bytes(4_000_000)])
    network.run(lambda: network.receiver.window >= 1_000_000)
    network._rate = 20_000
    network.finish()
    assert network.receiver.window <= 2 * 20_000


# ---- stalls and resumed transfers --------------------------------------------------------------------------


def test_a_stalled_payload_is_asked_for_again_at_doubling_distances():
    receiver = Downloads()
    receiver.add(Download(ID, P, [100_000]))
    assert [message.offset for message in receiver.fetches(0.0)] == [0, 8192]
    times = []
    for _ in range(8):
        times.append(receiver.deadline())
        assert receiver.fetches(times[-1] - 0.01) == []
        retry = receiver.fetches(times[-1])
        assert [(message.offset, message.length) for message in retry] == [(0, MIN_CHUNK_BYTES)]
    assert [later - earlier for earlier, later in pairwise([0.0, *times])] == [3, 6, 12, 24, 48, 48, 48, 48]
    assert receiver.window == MIN_WINDOW_BYTES
    assert receiver.outstanding == MIN_CHUNK_BYTES
    receiver.on_chunk(chunk(0), bytes(4096), times[-1])
    assert [message.offset for message in receiver.fetches(times[-1])] == [4096, 8192]
    assert receiver.deadline() == times[-1] + 3, "a chunk resets the distance"


def test_stalled_payloads_delay_no_other():
    receiver = Downloads()
    for number in range(10):
        receiver.add(Download(bytes([number]) * 16, P, [100_000], "dead"))
    now = 0.0
    for _ in range(12):
        receiver.fetches(now)
        now = receiver.deadline()
    receiver.fetches(now)
    receiver.add(Download(ID, P, [100_000], "alive"))
    assert [(message.request_id, message.offset) for message in receiver.fetches(now)] == [(ID, 0), (ID, 4096)]
    receiver.configure(1.0, 3, MIN_WINDOW_BYTES)
    for _ in range(40):
        assert receiver.outstanding <= MIN_WINDOW_BYTES + 10 * MIN_CHUNK_BYTES
        now = receiver.deadline()
        receiver.fetches(now)


def test_a_late_chunk_of_a_stalled_payload_ends_the_stall():
    receiver = Downloads()
    receiver.add(Download(ID, P, [100_000]))
    receiver.fetches(0.0)
    receiver.fetches(3.0)
    receiver.on_chunk(chunk(0), bytes(8192), 4.0)
    assert [message.offset for message in receiver.fetches(4.0)] == [8192, 12288]
    assert receiver.outstanding == MIN_WINDOW_BYTES


def test_a_slow_sender_is_asked_for_small_chunks_although_another_one_is_fast():
    receiver = Downloads()
    receiver.add(Download(OTHER_ID, P, [4 << 20], "fast"))
    now = 0.0
    while receiver.window < DEFAULT_FETCH_WINDOW_BYTES:
        for message in receiver.fetches(now):
            for start in range(message.offset, message.offset + message.length, message.chunk_bytes):
                size = min(message.chunk_bytes, message.offset + message.length - start)
                receiver.on_chunk(chunk(start, OTHER_ID), bytes(size), now + 0.01)
        now += 0.01
    receiver.add(Download(ID, Q, [4 << 20], "slow"))
    asked = [message for message in receiver.fetches(now) if message.request_id == ID]
    assert sum(message.length for message in asked) == INITIAL_WINDOW_BYTES
    assert max(message.chunk_bytes for message in asked) <= INITIAL_WINDOW_BYTES // 2


def test_a_payload_behind_long_answers_is_no_stall():
    receiver = Downloads()
    receiver.add(Download(ID, P, [100_000]))
    receiver.fetches(0.0)
    for number in range(1, 5):
        receiver.on_chunk(chunk(8192 * (number - 1)), bytes(8192), 2.5 * number)
        receiver.fetches(2.5 * number)
    assert receiver.deadline() == 10.0 + 2 * 2.5, "twice the time that the last answers took"


def test_the_windows_of_many_senders_are_forgotten():
    receiver = Downloads()
    for number in range(MAX_SOURCES + 10):
        receiver.add(Download(number.to_bytes(16), P, [10], str(number)))
        receiver.fetches(0.0)
        receiver.on_chunk(chunk(0, number.to_bytes(16)), bytes(10), 0.0)
    assert len(receiver) == receiver.outstanding == 0
    assert len(receiver._sources) <= MAX_SOURCES


def test_chunks_that_arrive_slowly_are_no_stall():
    receiver = Downloads()
    receiver.add(Download(ID, P, [8192]))
    assert len(receiver.fetches(0.0)) == 1
    for second in range(1, 9):
        now = 2.9 * second
        receiver.on_chunk(chunk(1024 * (second - 1)), bytes(1024), now)
        assert receiver.fetches(now) == []
    assert len(receiver) == 0


def test_chunks_are_asked_for_again_where_the_first_is_missing():
    receiver = Downloads()
    receiver.add(Download(ID, P, [20_000]))
    receiver.fetches(0.0)
    receiver.on_chunk(chunk(0), bytes(4096), 1.0)
    receiver.on_chunk(chunk(8192), bytes(4096), 1.0)  # the one before was lost
    assert receiver.fetches(4.0)[0].offset == 4096


def test_the_liveness_time_follows_the_settings():
    receiver = Downloads()
    receiver.configure(0.1, 5, DEFAULT_FETCH_WINDOW_BYTES)
    receiver.add(Download(ID, P, [1000]))
    receiver.fetches(0.0)
    assert receiver.deadline() == pytest.approx(0.5)


def test_a_new_connection_asks_for_what_is_missing():
    receiver = Downloads()
    receiver.add(Download(ID, P, [100_000]))
    (first, second) = receiver.fetches(0.0)
    receiver.on_chunk(chunk(0, token=b"t" * 16), bytes(first.length), 0.1)
    assert receiver.fetches(0.1)[0].token == b"t" * 16
    receiver.window = 1_000_000
    receiver.restart()
    assert (receiver.window, receiver.token, receiver.outstanding) == (INITIAL_WINDOW_BYTES, b"", 0)
    assert receiver.deadline() == float("inf"), "nothing was asked for on the new connection"
    again = receiver.fetches(0.2)
    assert (again[0].offset, again[0].token) == (first.length, b"")
    assert second.offset == again[0].offset


def test_a_download_continues_at_another_receiver():
    first, second = Downloads(), Downloads()
    download = Download(ID, P, [5000, 5000])
    first.add(download)
    first.fetches(0.0)
    first.on_chunk(chunk(0), b"a" * 6000, 0.1)
    second.add(download)
    assert [(message.offset, message.length) for message in second.fetches(0.2)] == [(6000, 4000)]
    assert second.on_chunk(chunk(6000), b"b" * 4000, 0.3) is download
    assert [bytes(frame) for frame in download.frames()] == [b"a" * 5000, b"a" * 1000 + b"b" * 4000]


def test_another_payload_of_the_same_request_replaces_the_first():
    receiver = Downloads()
    receiver.add(Download(ID, P, [100_000]))
    receiver.fetches(0.0)
    receiver.add(Download(ID, Q, [3]))
    assert receiver.outstanding == 0
    assert [message.payload_id for message in receiver.fetches(0.0)] == [Q]
    assert receiver.on_chunk(chunk(0), b"old", 0.1) is None
    assert receiver.on_chunk(chunk(0, payload_id=Q), b"new", 0.1) is not None


def test_a_removed_download_is_neither_asked_for_nor_accepted():
    receiver = Downloads()
    download = Download(ID, P, [100_000])
    receiver.add(download)
    receiver.fetches(0.0)
    assert receiver.remove(ID) is download
    assert receiver.remove(ID) is None
    assert receiver.outstanding == 0
    assert receiver.on_chunk(chunk(0, token=b"t" * 16), bytes(10), 0.1) is None
    assert receiver.token == b"t" * 16, "its chunks are confirmed all the same"
    assert receiver.fetches(100.0) == []


# ---- the window --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "window"), [(0.1, 2 * INITIAL_WINDOW_BYTES), (0.5, INITIAL_WINDOW_BYTES), (1.1, MIN_WINDOW_BYTES)]
)
def test_the_window_follows_the_time_that_an_answer_takes(seconds, window):
    receiver = Downloads()
    receiver.add(Download(ID, P, [100_000]))
    first = receiver.fetches(0.0)[0]
    receiver.on_chunk(chunk(0), bytes(first.length), seconds)
    assert receiver.window == window


def test_a_short_answer_does_not_widen_the_window():
    receiver = Downloads()
    receiver.add(Download(ID, P, [1000]))
    receiver.fetches(0.0)
    receiver.on_chunk(chunk(0), bytes(1000), 0.01)
    assert receiver.window == INITIAL_WINDOW_BYTES


@pytest.mark.parametrize("most", [4096, 8192, 10_000, 100_000])
def test_the_announced_maximum_is_never_exceeded(most):
    receiver = Downloads()
    receiver.configure(1.0, 3, most)
    data = some_bytes(400_000)
    receiver.add(Download(ID, P, [len(data)]))
    now = 0.0
    while len(receiver):
        for message in receiver.fetches(now):
            assert receiver.outstanding <= most
            for header, part in chunks([data], message):
                receiver.on_chunk(header, part, now + 0.01)
        now += 0.02
        if int(now / 0.02) % 10 == 0:
            receiver.restart()
    assert receiver.window <= most


def test_a_stall_does_not_exceed_the_announced_maximum():
    receiver = Downloads()
    receiver.configure(1.0, 3, MIN_CHUNK_BYTES)
    receiver.add(Download(ID, P, [400_000]))
    receiver.fetches(0.0)
    receiver.fetches(3.0)
    assert receiver.outstanding <= MIN_CHUNK_BYTES


def test_one_fetch_asks_for_a_limited_number_of_bytes():
    receiver = Downloads()
    receiver.configure(1.0, 3, 1 << 30)
    receiver.add(Download(ID, P, [60 << 20]))
    receiver.window = receiver._sources[""].window = 1 << 30
    assert [message.length for message in receiver.fetches(0.0)] == [MAX_FETCH_BYTES] * 3 + [12 << 20]


# ---- hostile senders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (chunk(1), b"a"),
        (chunk(0, request_id=OTHER_ID), b"a"),
        (chunk(0, payload_id=Q), b"a"),
        (chunk(0), b""),
        (chunk(0), bytes(10_001)),
        (chunk(10_000), b"a"),
    ],
    ids=["a gap", "another request", "another payload", "empty", "too long", "beyond the end"],
)
def test_a_chunk_that_does_not_fit_is_ignored(header, data):
    receiver = Downloads()
    download = Download(ID, P, [10_000])
    receiver.add(download)
    receiver.fetches(0.0)
    assert receiver.on_chunk(header, data, 0.5) is None
    assert (download.received, receiver.outstanding) == (0, 10_000)
    assert receiver.deadline() == 3.0, "it does not count as progress"


def test_a_repeated_chunk_is_ignored():
    receiver = Downloads()
    download = Download(ID, P, [10_000])
    receiver.add(download)
    receiver.fetches(0.0)
    for _ in range(3):
        receiver.on_chunk(chunk(0), bytes(4000), 0.5)
    assert (download.received, receiver.outstanding) == (4000, 6000)


def test_bytes_that_nobody_asked_for_count_once():
    receiver = Downloads()
    receiver.add(Download(ID, P, [100_000]))
    receiver.fetches(0.0)
    receiver.on_chunk(chunk(0), bytes(50_000), 0.1)
    assert receiver.outstanding == 0
    assert receiver.fetches(0.1)[0].offset == 50_000


@given(st.data())
def test_any_chunks_at_any_time_keep_the_counts_and_the_payload_right(data):
    payloads = {bytes([number]) * 16: [some_bytes(size, number)] for number, size in enumerate((1, 9000, 60_000))}
    receiver, now, complete, last = Downloads(), 0.0, {}, {}
    for request_id, frames in payloads.items():
        receiver.add(Download(request_id, P, sizes_of(frames)))
    for _ in range(data.draw(st.integers(1, 40))):
        for message in receiver.fetches(now):
            last[message.request_id] = message
        now += data.draw(st.sampled_from([0.0, 0.1, 2.0, 5.0, 100.0]))
        what = data.draw(st.integers(0, 9))
        if what == 0:
            receiver.restart()
        elif what == 1:
            most = data.draw(st.sampled_from([4096, 20_000, 1 << 30]))
            receiver.configure(data.draw(st.sampled_from([0.01, 1.0, 60.0])), 3, most)
        elif last:
            request_id = data.draw(st.sampled_from(sorted(last)))
            offset = data.draw(st.sampled_from([last[request_id].offset, 0, 4096, 50_000]))
            message = msgspec.structs.replace(last[request_id], offset=offset)
            for header, part in chunks(payloads[request_id], message):
                if (download := receiver.on_chunk(header, part, now)) is not None:
                    assert request_id not in complete
                    complete[request_id] = [bytes(frame) for frame in download.frames()]
        waiting = [download for one in payloads if (download := receiver.get(one)) is not None]
        assert receiver.outstanding == sum(download.outstanding for download in waiting) >= 0
        assert len(waiting) + len(complete) == len(payloads)
        assert receiver.deadline() == float("inf") or receiver.outstanding
    for request_id, frames in complete.items():
        assert frames == payloads[request_id]
