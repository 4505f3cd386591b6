"""Blocking client over real sockets."""

import threading

import pytest

from imagegen_client import (
    CancelledError,
    DeadlineExceededError,
    GenerationFailedError,
    InvalidRequestError,
    ModelNotFoundError,
)
from imagegen_protocol.limits import MAX_RANDOM_SEED
from tests.integration.client.peers import PATIENCE, PNG, wait_for_end


def test_generate(client, worker):
    result = client.generate("a red circle", seed=7, num_images=2)
    assert (result.seeds, result.worker, result.model, result.attempt) == ([7, 8], "raw", "raw-model", 1)
    assert [image.size for image in result.images] == [(4, 2), (4, 2)]
    assert result.encoded == [PNG, PNG]
    assert result.total_seconds > 0
    worker.wait_for_idleness()


def test_progress_is_reported_in_the_callers_thread(client, worker):
    signs = []
    client.generate(
        "x", on_progress=lambda sign: signs.append((threading.current_thread(), sign.step, sign.steps))
    )
    # Step 0 is the broker's own word that it has begun.
    assert [sign[1:] for sign in signs if sign[1]] == [(1, 2), (2, 2)]
    assert {sign[0] for sign in signs} == {threading.current_thread()}


def test_a_job_reports_progress_and_its_result_repeatedly(client, worker):
    job = client.submit("x", progress=True, seed=3)
    assert [sign.step for sign in job.progress()][-2:] == [1, 2]
    assert list(job.progress()) == []
    assert job.result() is job.result()
    assert job.done()
    assert (job.seed, job.exception(), job.cancel()) == (3, None, False)
    assert job.request_id == job.result().request_id
    assert "done" in repr(job)
    with pytest.raises(ValueError, match="progress=True"):
        client.submit("x").progress()


def test_random_seeds_are_exact_for_readers_of_doubles(client, worker):
    jobs = [client.submit("x") for _ in range(4)]
    assert len({job.seed for job in jobs}) == 4
    assert max(job.seed for job in jobs) <= MAX_RANDOM_SEED


def test_done_callbacks_run_at_the_end_or_immediately(client, worker):
    called = []
    job = client.submit("hold")
    job.add_done_callback(called.append)
    assert called == []
    worker.let_go.set()
    job.result(PATIENCE)
    job.add_done_callback(called.append)
    assert called == [job, job]


def test_a_failing_callback_is_logged(client, worker, caplog):
    job = client.submit("hold")
    job.add_done_callback(lambda job: 1 / 0)
    worker.let_go.set()
    job.result(PATIENCE)
    assert client.generate("y").worker == "raw"
    assert "ZeroDivisionError" in caplog.text


def test_errors_are_typed(client, worker):
    with pytest.raises(GenerationFailedError, match="it broke"):
        client.generate("fail")
    with pytest.raises(ModelNotFoundError, match="raw-model"):
        client.generate("x", model="another")
    with pytest.raises(InvalidRequestError, match="width"):
        client.submit("x", width=3)
    assert isinstance(client.submit("fail").exception(PATIENCE), GenerationFailedError)
    worker.wait_for_idleness()


def test_a_cancellation_reaches_the_worker(client, worker):
    job = client.submit("hold")
    worker.wait_for_work(1)
    with pytest.raises(TimeoutError):
        job.result(timeout=0)
    assert job.cancel()
    with pytest.raises(CancelledError):
        job.result(PATIENCE)
    worker.wait_for_idleness()


def test_an_exception_in_on_progress_cancels_the_request(client, worker):
    def stop(sign):
        if sign.state == "running":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.generate("hold", on_progress=stop)
    worker.wait_for_work(1)
    worker.wait_for_idleness()


def test_a_timeout_ends_a_request(client, worker):
    with pytest.raises(DeadlineExceededError):
        client.generate("hold", timeout_seconds=0.3)
    worker.wait_for_idleness()


def test_map_keeps_the_order_and_the_window(client, worker):
    read = []

    def prompts():
        for number in range(40):
            read.append(number)
            yield {"prompt": f"hold {number}", "seed": number} if number % 2 else f"hold {number}"

    results = client.map(prompts(), window=5, seed=100)
    assert read == []
    worker.let_go.set()
    first = next(results)
    assert len(read) == 5
    rest = list(results)
    assert [result.seed for result in [first, *rest]] == [number if number % 2 else 100 for number in range(40)], (
        "own options win over common ones"
    )
    assert worker.most_held <= 5
    with pytest.raises(ValueError, match="window"):
        client.map([], window=0)


def test_map_raises_the_first_error_in_its_place_and_cancels_the_rest(client, worker):
    results = client.map(["x", "fail", "hold", "hold"])
    assert next(results).worker == "raw"
    with pytest.raises(GenerationFailedError):
        next(results)
    worker.wait_for_idleness()


def test_closing_a_map_cancels_its_requests(client, worker):
    results = client.map(["x", "hold", "hold"])
    next(results)
    worker.wait_for_work(3)
    results.close()
    worker.wait_for_idleness()


def test_statistics(client, worker):
    client.generate("x")
    (gpu,) = client.stats()["per_gpu_stats"]
    assert gpu["worker"] == "raw"


def test_eight_threads_share_a_client(client, worker):
    made, wrong = [], []

    def work(start):
        try:
            jobs = [client.submit("x", seed=seed) for seed in range(start, start + 50)]
            made.extend(job.result(PATIENCE).seed for job in jobs)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        wait_for_end(thread)
    assert wrong == []
    assert sorted(made) == sorted(1000 * number + at for number in range(8) for at in range(50))
    worker.wait_for_idleness()
