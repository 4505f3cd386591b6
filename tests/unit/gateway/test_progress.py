"""Followers of a job, pings and streams."""

import asyncio

from imagegen_client import Progress
from imagegen_gateway.jobs.progress import JobProgress, image_data_url
from imagegen_gateway.sse import with_keepalives

PNG = b"\x89PNG\r\n\x1a\n"


def test_followers_are_woken_by_each_sign_and_by_the_end():
    async def run():
        live = JobProgress()
        first, same = live.news(), live.news()
        assert first is same
        live.tell(Progress(1, 4))
        await first
        second = live.news()
        assert not second.done()
        live.end()
        await second
        await live.news()  # whoever comes after the end does not wait

    asyncio.run(run())


def test_what_is_shown():
    live = JobProgress()
    assert live.fields() == {}
    live.tell(Progress(0, 0, state="queued", place=3, seconds_to_start=1.5))
    assert live.fields() == {"place": 3, "seconds_to_start": 1.5}
    live.tell(Progress(2, 4, preview=PNG))
    live.tell(Progress(3, 4))
    assert (live.fields(), live.preview) == ({"step": 3, "steps": 4}, PNG)
    live.tell(Progress(0, 0, attempt=2, state="queued", place=0))
    assert live.preview is None, "its worker has died, and the picture with it"


def test_previews_are_told_apart():
    assert image_data_url(PNG).startswith("data:image/png;base64,iVBOR")
    assert image_data_url(b"\xff\xd8\xff").startswith("data:image/jpeg;base64,/9j")


def test_pings_come_between_events_and_the_stream_is_closed_at_the_end():
    closed = []

    async def run():
        go = asyncio.Event()

        async def events():
            try:
                yield b"one"
                await go.wait()
                yield b"two"
            finally:
                closed.append(True)

        got = []
        async for chunk in with_keepalives(events(), seconds=0.001):
            got.append(chunk)
            if len(got) == 4:
                go.set()
        return got

    got = asyncio.run(run())
    assert got[0] == b"one"
    assert got[-1] == b"two"
    assert {*got[1:-1]} == {b": ping\n\n"}
    assert closed == [True]


def test_a_stream_that_is_given_up_is_closed():
    closed = []

    async def run():
        async def events():
            try:
                yield b"one"
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        stream = with_keepalives(events(), seconds=0.001)
        assert [await anext(stream), await anext(stream)] == [b"one", b": ping\n\n"]
        await stream.aclose()

    asyncio.run(run())
    assert closed == [True]
