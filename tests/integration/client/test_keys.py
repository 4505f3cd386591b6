"""Clients with valid, invalid and no keys."""

import time

import pytest

from imagegen_broker.access import Access
from imagegen_client import BrokerUnreachableError, Client, UnauthorizedError
from imagegen_protocol.handshake import KEY_REFUSED
from imagegen_protocol.keys import read_pair
from tests.integration.client.peers import PATIENCE


def open_client(broker, keys, own="clients/alice.key_secret", server="broker.key"):
    return Client(broker.frontend_endpoint, key=keys / own, broker_key=keys / server)


@pytest.fixture
def access(keys):
    """Return a function that creates the access rules of a broker with the key of this name."""

    def make(name="broker"):
        return Access(read_pair(keys / f"{name}.key_secret"), keys / "clients", keys / "workers")

    return make


def wait_until(holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_valid_keys_are_accepted(guarded, keys):
    with open_client(guarded, keys) as client:
        assert client.stats(PATIENCE)["clients"] == 1


@pytest.mark.parametrize("own", ["stranger.key_secret", "workers/gpu0.key_secret"])
def test_a_rejected_key_ends_a_request_with_the_reason(guarded, keys, own):
    with open_client(guarded, keys, own) as client, pytest.raises(UnauthorizedError) as caught:
        client.submit("a red circle").result(PATIENCE)
    assert caught.value.message == f"{guarded.frontend_endpoint}: {KEY_REFUSED}"


WRONG_SETUPS = pytest.mark.parametrize(
    ("broker_is_guarded", "options", "reason"),
    [
        (True, {}, "only one side uses keys"),
        (False, {"key": "clients/alice.key_secret", "broker_key": "broker.key"}, "only one side uses keys"),
        (True, {"key": "clients/alice.key_secret", "broker_key": "stranger.key"}, "have another key"),
    ],
    ids=["no keys", "keys for a broker without", "a wrong broker key"],
)


@WRONG_SETUPS
def test_a_failing_handshake_is_an_unreachable_broker_with_a_reason(
    start_broker, access, keys, caplog, broker_is_guarded, options, reason
):
    broker = start_broker(access=access() if broker_is_guarded else None)
    paths = {name: keys / path for name, path in options.items()}
    with (
        Client(broker.frontend_endpoint, connect_timeout=5.0, **paths) as client,
        pytest.raises(BrokerUnreachableError, match="no broker answered") as caught,
    ):
        client.submit("a red circle").result(PATIENCE)
    assert list(caught.value.suspicions) == [broker.frontend_endpoint]
    assert reason in caught.value.message
    warnings = [record.getMessage() for record in caplog.records if reason in record.getMessage()]
    assert warnings[0].startswith(f"handshake failed broker={broker.frontend_endpoint} reason=")


@WRONG_SETUPS
def test_a_request_succeeds_once_the_broker_is_repaired(
    start_broker, access, keys, caplog, broker_is_guarded, options, reason
):
    wrong = start_broker(access=access() if broker_is_guarded else None)
    paths = {name: keys / path for name, path in options.items()}
    with Client(wrong.frontend_endpoint, **paths) as client:
        job = client.submit("a red circle", timeout_seconds=None)
        wait_until(lambda: reason in caplog.text)
        start_broker.stop(wrong)
        right_access = access("stranger" if "stranger.key" in options.values() else "broker") if options else None
        start_broker(wrong.frontend_endpoint, access=right_access)
        assert client.stats(PATIENCE)["queued_requests"] == 1
        job.cancel()


def test_a_revoked_client_is_rejected(guarded, keys):
    with open_client(guarded, keys) as client:
        job = client.submit("a red circle")
        assert client.stats(PATIENCE)["queued_requests"] == 1
        (keys / "clients" / "alice.key").unlink()
        guarded.reload()
        with pytest.raises(UnauthorizedError, match="no longer"):
            job.result(PATIENCE)


def test_a_rejected_client_succeeds_once_its_key_is_authorized(guarded, keys):
    with open_client(guarded, keys, "stranger.key_secret") as client:
        with pytest.raises(UnauthorizedError):
            client.submit("a red circle").result(PATIENCE)
        (keys / "stranger.key").rename(keys / "clients" / "stranger.key")
        guarded.reload()
        # libzmq does not dial again after a refusal; the client does, with a new socket.
        assert client.stats(PATIENCE)["clients"] == 1
