"""One unfinished request or statistics query."""

from dataclasses import dataclass

from imagegen_client.events import Payload
from imagegen_protocol.messages import Result, Stats, StatsQuery, Submit
from imagegen_protocol.transfers import Download


@dataclass(slots=True, eq=False)
class Pending:
    """One unfinished request or statistics query; times are monotonic seconds."""

    key: bytes
    message: Submit | StatsQuery
    payload: Payload
    created_at: float
    timeout: float
    id: bytes
    """Id on the wire; a retry after `overloaded` gets a new one, since the broker ignores acknowledged ids."""
    sent_at: float | None = None
    """When it was last sent on the current connection."""
    ever_sent: bool = False
    accepted: bool = False
    cancel_deadline: float | None = None
    """Once cancelled: when to stop waiting for the broker's confirmation."""
    retry_at: float | None = None
    retries: int = 0
    header: Result | Stats | None = None
    """Header of the answer whose payload is fetched."""
    download: Download | None = None
    """The partly received payload."""
