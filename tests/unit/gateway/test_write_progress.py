"""Detection of clients that do not read their responses."""

from imagegen_gateway.core.write_progress import PART_SECONDS, PAUSE_SECONDS, WriteProgress


def first_stall(observations):
    """Return the time at which a client counts as stalled; `observations` are pairs of time and waiting bytes."""
    progress = WriteProgress()
    return next((now for now, waiting in observations if progress.is_stalled(waiting, now)), None)


def test_a_client_that_reads_nothing_is_stalled_after_the_pause():
    assert first_stall((now, 100) for now in range(100)) == PAUSE_SECONDS
    assert first_stall((now, 100 + now) for now in range(100)) == PAUSE_SECONDS, "new bytes are no progress"


def test_an_idle_connection_is_never_stalled():
    assert first_stall((now, 0) for now in range(1000)) is None
    assert first_stall((now, 100 * (now % 15 != 0)) for now in range(1000)) is None


def test_a_client_that_reads_slowly_has_a_longer_limit():
    assert first_stall((now, 10**6 - now) for now in range(1000)) == PART_SECONDS


def test_a_client_that_reads_each_part_is_not_stalled():
    progress = WriteProgress()
    for now in range(1000):
        if now % 10 == 0:
            progress.note_drained()
        assert not progress.is_stalled(64_000, now), "the next part has been sent at once"


def test_the_pause_begins_anew_after_the_last_part_read():
    progress = WriteProgress()
    assert not progress.is_stalled(100, 0)
    progress.note_drained()
    assert not progress.is_stalled(100, 19)
    assert not progress.is_stalled(100, 38)
    assert progress.is_stalled(100, 39)
