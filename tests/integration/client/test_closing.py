"""Closing of a client: all resources are freed."""

import gc
import threading
import weakref

import psutil
import pytest

from imagegen_client import (
    Client,
    ClientClosedError,
)
from tests.integration.client.peers import NOWHERE, PATIENCE, wait_for_end


def test_closing_ends_requests_and_notifies_the_broker(broker, worker):
    client = Client(broker.frontend_endpoint)
    job = client.submit("hold")
    worker.wait_for_work(1)
    client.close()
    with pytest.raises(ClientClosedError):
        job.result(0)
    with pytest.raises(ClientClosedError):
        client.submit("x")
    with pytest.raises(ClientClosedError):
        client.stats()
    job.cancel()
    client.close()
    worker.wait_for_idleness()  # GOODBYE cancelled it


def test_closing_frees_threads_and_descriptors(broker, worker):
    process = psutil.Process()

    def once():
        with Client(broker.frontend_endpoint) as client:
            client.generate("x")
        with Client([NOWHERE, NOWHERE]) as client:
            client.submit("x")

    once()
    gc.collect()
    threads, files = process.num_threads(), process.num_fds()
    for _ in range(10):
        once()
    gc.collect()
    assert process.num_threads() <= threads
    # The broker's ends of the connections go a little later.
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if process.num_fds() <= files:
            break
        pause.wait(0.01)
    assert process.num_fds() <= files
    assert not [thread for thread in threading.enumerate() if thread.name == "imagegen-client"]


def test_an_unreferenced_client_closes_after_its_jobs(broker, worker):
    client = Client(broker.frontend_endpoint)
    thread = client._transport._thread
    job = client.submit("hold")
    forgotten = weakref.ref(client)
    del client
    gc.collect()
    assert forgotten() is not None
    worker.let_go.set()
    assert job.result(PATIENCE).worker == "raw"
    wait_for_end(thread)
    assert forgotten() is None


def test_a_callback_may_close_its_own_client(broker, worker, caplog):
    client = Client(broker.frontend_endpoint)
    job = client.submit("hold")
    other = client.submit("hold")
    job.add_done_callback(lambda job: client.close())
    worker.wait_for_work(2)
    worker.let_go.set()
    job.result(PATIENCE)
    wait_for_end(client._transport._thread)
    assert other.done()
    assert caplog.records == []


def test_ctrl_c_during_submission_is_harmless(client, worker):
    class Interrupted(list):
        def append(self, item):
            super().append(item)
            client._transport._queued = list(self)
            raise KeyboardInterrupt

    with client._transport._lock:  # so that the thread takes no events
        client._transport._queued = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            client.submit("x")
    assert client.generate("y").worker == "raw"
    assert worker.begun == ["x", "y"]


def test_a_failure_of_the_io_thread_ends_every_job(broker, worker, caplog, monkeypatch):
    client = Client(broker.frontend_endpoint)
    job = client.submit("hold")
    worker.wait_for_work(1)
    monkeypatch.setattr(client._transport._core, "handle", lambda event, now: 1 / 0)
    with pytest.raises(ClientClosedError, match="ZeroDivisionError") as caught:
        job.result(PATIENCE)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ClientClosedError, match="ZeroDivisionError"):
        client.submit("x")
    client.close()
    assert "I/O thread failed" in caplog.text
