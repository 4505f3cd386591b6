"""Confirmations to the broker: acknowledgements of answers, and the token of the last chunk or preview."""

from imagegen_client.events import Action, Send
from imagegen_client.payloads import Payloads
from imagegen_protocol.limits import MAX_IDS_PER_MESSAGE
from imagegen_protocol.messages import Ack, ClientHeartbeat


class Receipts:
    """Collects acknowledgements, and creates the messages that carry them and the latest token."""

    def __init__(self, payloads: Payloads, receive_maximum: int | None) -> None:
        self._payloads = payloads
        self._receive_maximum = receive_maximum
        self._ids: list[bytes] = []
        self.is_due = False
        """Whether the token of a received preview has not been confirmed yet."""

    def acknowledge(self, request_id: bytes) -> None:
        """Acknowledge an answer with the next ACK."""
        self._ids.append(request_id)

    def receive_token(self, token: bytes) -> None:
        """Confirm the token of a preview with the next message."""
        if token:
            self._payloads.token, self.is_due = token, True

    def acks(self) -> list[Action]:
        """Return the collected acknowledgements."""
        if not self._ids:
            return []
        ids = list(dict.fromkeys(self._ids))
        self.clear()
        token, step = self._payloads.token, MAX_IDS_PER_MESSAGE
        parts = [ids[start : start + step] for start in range(0, len(ids), step)]
        return [Send(Ack(request_ids=part, token=token)) for part in parts]

    def heartbeat(self) -> Action:
        """Return a heartbeat."""
        self.is_due = False
        return Send(ClientHeartbeat(token=self._payloads.token, receive_maximum=self._receive_maximum))

    def clear(self) -> None:
        """Discard everything that was collected."""
        self._ids, self.is_due = [], False
