"""The progress of jobs for their followers."""

import asyncio

from imagegen_client import Progress
from imagegen_gateway.jobs.progress import JobProgress, image_data_url

PNG = b"\x89PNG\r\n\x1a\n"


def test_followers_are_woken_by_each_report_and_by_the_end():
    async def run():
        progress = JobProgress()
        first, same = progress.changed(), progress.changed()
        assert first is same
        progress.update(Progress(1, 4))
        await first
        second = progress.changed()
        assert not second.done()
        progress.finish()
        await second
        await progress.changed()  # does not block after the end

    asyncio.run(run())


def test_the_latest_report_and_preview_are_kept():
    progress = JobProgress()
    assert progress.fields() == {}
    progress.update(Progress(0, 0, state="queued", place=3, seconds_to_start=1.5))
    assert progress.fields() == {"place": 3, "seconds_to_start": 1.5}
    progress.update(Progress(2, 4, preview=PNG))
    progress.update(Progress(3, 4))
    assert (progress.fields(), progress.preview) == ({"step": 3, "steps": 4}, PNG)
    progress.update(Progress(0, 0, attempt=2, state="queued", place=0))
    assert progress.preview is None, "a requeued request starts again"
    progress.update(Progress(0, 0, state="waiting", reason="no broker answers"))
    assert progress.fields() == {"place": None, "seconds_to_start": None}


def test_data_urls_state_the_format_of_the_preview():
    assert image_data_url(PNG).startswith("data:image/png;base64,iVBOR")
    assert image_data_url(b"\xff\xd8\xff").startswith("data:image/jpeg;base64,/9j")
