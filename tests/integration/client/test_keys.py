"""A client with keys, with wrong ones, and with none: whoever is not let in is told so in a sentence."""

import pytest

from imagegen_client import Client, UnauthorizedError
from imagegen_protocol.handshake import BROKEN_OFF, KEY_REFUSED
from tests.integration.client.peers import PATIENCE


def open_client(broker, keys, own="clients/alice.key_secret", server="broker.key"):
    return Client(broker.frontend_endpoint, key=keys / own, broker_key=keys / server)


def test_the_right_keys_open_the_door(guarded, keys):
    with open_client(guarded, keys) as client:
        assert client.stats(PATIENCE)["clients"] == 1


@pytest.mark.parametrize(
    ("own", "server", "reason"),
    [
        ("stranger.key_secret", "broker.key", KEY_REFUSED),
        ("workers/gpu0.key_secret", "broker.key", KEY_REFUSED),
        ("clients/alice.key_secret", "stranger.key", BROKEN_OFF),
    ],
)
def test_wrong_keys_end_a_request_with_a_sentence(guarded, keys, own, server, reason):
    with open_client(guarded, keys, own, server) as client, pytest.raises(UnauthorizedError) as caught:
        client.submit("a red circle").result(PATIENCE)
    assert caught.value.message == f"{guarded.frontend_endpoint}: {reason}"


def test_no_keys_end_a_request_with_a_sentence(guarded):
    with Client(guarded.frontend_endpoint) as client, pytest.raises(UnauthorizedError, match="one side uses keys"):
        client.submit("a red circle").result(PATIENCE)


def test_keys_for_a_broker_that_has_none_end_with_a_sentence(broker, keys):
    # Which of the two it is depends on who hangs up first.
    with (
        open_client(broker, keys) as client,
        pytest.raises(UnauthorizedError, match=r"one side uses|it uses none"),
    ):
        client.submit("a red circle").result(PATIENCE)


def test_a_revoked_client_is_told_so(guarded, keys):
    with open_client(guarded, keys) as client:
        job = client.submit("a red circle")
        assert client.stats(PATIENCE)["queued_requests"] == 1
        (keys / "clients" / "alice.key").unlink()
        guarded.reload()
        with pytest.raises(UnauthorizedError, match="no longer"):
            job.result(PATIENCE)


def test_a_refused_client_asks_in_vain_until_its_key_is_known(guarded, keys):
    with open_client(guarded, keys, "stranger.key_secret") as client:
        with pytest.raises(UnauthorizedError):
            client.submit("a red circle").result(PATIENCE)
        (keys / "stranger.key").rename(keys / "clients" / "stranger.key")
        guarded.reload()
        # libzmq does not dial again after a refusal; the client does, with a new socket.
        assert client.stats(PATIENCE)["clients"] == 1
