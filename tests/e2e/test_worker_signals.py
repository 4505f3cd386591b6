"""SIGHUP to workers and supervisors, which end at SIGTERM only."""

import signal

import pytest


@pytest.mark.parametrize("gpus", ["0", "0,1"], ids=["worker", "supervisor"])
def test_sighup_is_ignored(fleet, client, gpus):
    fleet.start_worker("hup", "--gpu", gpus, "--backend", "simulated")
    fleet.wait_for_workers(client, len(gpus.split(",")))
    fleet.processes["hup"].send_signal(signal.SIGHUP)
    assert client.generate("x", width=64, height=64).image.size == (64, 64)
    assert fleet.terminate("hup") == 0, "it drained"
