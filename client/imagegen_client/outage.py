"""Reports about the time in which no broker serves the client."""

import logging
from collections.abc import Iterable
from math import inf

from imagegen_client.events import Action, LogEvent, ReportWaiting
from imagegen_client.link import Link
from imagegen_client.pending import Pending
from imagegen_client.pending_table import PendingTable
from imagegen_protocol.messages import Submit

FIRST_SECONDS = 5.0
"""Time without a broker before the first report; the interval between reports doubles."""
MAX_DISTANCE_SECONDS = 600.0


class Outage:
    """Reports, at growing intervals, that requests wait for a broker; times are monotonic seconds."""

    def __init__(self, link: Link, pending: PendingTable) -> None:
        self.next_at = inf
        """When the next report is due; infinite while nothing waits."""
        self._link = link
        self._pending = pending
        self._since = 0.0
        self._distance = 0.0
        """Seconds between the last report and the next one; 0 before the first."""

    def report(self, now: float) -> list[Action]:
        """Return the report that is due, if any; the end of a reported outage is logged, too."""
        if self._link.is_established or not self._pending.by_key:
            return self._end(now)
        if self.next_at == inf:
            self._since, self.next_at = now, now + FIRST_SECONDS
        if now < self.next_at:
            return []
        self._distance = min(2 * self._distance or FIRST_SECONDS, MAX_DISTANCE_SECONDS)
        self.next_at = now + self._distance
        requests = [entry for entry in self._pending.by_key.values() if isinstance(entry.message, Submit)]
        if not requests:
            return []
        fields = {
            "requests": str(len(requests)),
            "seconds": f"{now - self._since:.0f}",
            "reason": self._link.outage_reason(),
        }
        return [LogEvent(logging.WARNING, "waiting for a broker", fields), *self._to_application(requests)]

    def report_new(self, entry: Pending) -> list[Action]:
        """Return the report for a request that is submitted after the first report about the outage."""
        return self._to_application([entry]) if self._distance else []

    def _end(self, now: float) -> list[Action]:
        was_reported, self.next_at, self._distance = self._distance > 0, inf, 0.0
        if not was_reported or not self._link.is_established:
            return []
        fields = {"broker": self._link.endpoint, "seconds": f"{now - self._since:.0f}"}
        return [LogEvent(logging.INFO, "broker answers again", fields)]

    def _to_application(self, entries: Iterable[Pending]) -> list[Action]:
        reason = self._link.outage_reason()
        return [
            ReportWaiting(entry.key, reason)
            for entry in entries
            if isinstance(entry.message, Submit) and (entry.message.progress or entry.message.preview)
        ]
