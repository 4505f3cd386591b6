"""Persistence of jobs: a job is in the database before it is accepted, and ends exactly once."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiosqlite

from imagegen_gateway.database import Database, Row

_UNKNOWN_BYTES = 16 * 1024**2
"""Assumed size of an input image whose size is not stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A stored job. Times are seconds since 1970."""

    id: str
    owner: str
    state: str
    prompt: str
    options: dict[str, Any]
    """Keyword arguments as in the client's `RequestOptions`; the seed is set, input images are not included."""
    inputs: tuple[str, ...]
    """Names of the input images: `image`, `mask_image`."""
    input_bytes: int
    """Total size of the input images."""
    token: str
    """Random part of the names of the job's files."""
    base_url: str
    created: float
    started: float | None
    finished: float | None
    expires: float | None
    images: list[dict[str, Any]] | None
    error: dict[str, Any] | None
    fingerprint: str
    webhook_url: str | None
    webhook_attempts: int

    def input_file(self, name: str) -> str:
        """Return the name of the file that holds one of `inputs`."""
        return f"{self.token}-{name}"


class JobStore:
    """Jobs in the database. `now` is in seconds since 1970."""

    def __init__(self, database: Database, retention_seconds: float) -> None:
        self._database = database
        self.retention_seconds = retention_seconds

    async def add(
        self,
        *,
        owner: str,
        prompt: str,
        options: Mapping[str, Any],
        inputs: Mapping[str, int],
        token: str,
        base_url: str,
        fingerprint: str,
        idempotency_key: str | None,
        webhook_url: str | None,
        now: float,
    ) -> Job | None:
        """Store a job and return it; None if the owner has used the `idempotency_key` before.

        `inputs` has the sizes of the input images by name.
        """
        id_ = "job_" + secrets.token_hex(16)
        size = sum(inputs.values())
        request = json.dumps({"options": dict(options), "inputs": list(inputs), "input_bytes": size})
        try:
            await self._database.execute(
                "INSERT INTO jobs (id, owner, state, prompt, options, token, base_url, created, fingerprint,"
                " idempotency_key, webhook_url) VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?)",
                (id_, owner, prompt, request, token, base_url, now, fingerprint, idempotency_key, webhook_url),
            )
        except aiosqlite.IntegrityError:
            return None
        return await self.get(id_)

    async def get(self, id_: str, owner: str | None = None) -> Job | None:
        """Return a job; with `owner`, only if it belongs to that key."""
        row = await self._database.fetch_one("SELECT * FROM jobs WHERE id = ?", (id_,))
        return None if row is None or (owner is not None and row["owner"] != owner) else _job(row)

    async def by_idempotency_key(self, owner: str, key: str) -> Job | None:
        """Return the job for which the owner used this idempotency key."""
        row = await self._database.fetch_one(
            "SELECT * FROM jobs WHERE owner = ? AND idempotency_key = ?", (owner, key)
        )
        return None if row is None else _job(row)

    async def newest(self, owner: str, limit: int, before: Job | None) -> list[Job]:
        """Return up to `limit` jobs of an owner, newest first; with `before`, only jobs older than that job."""
        cursor = (float("inf"), "") if before is None else (before.created, before.id)
        rows = await self._database.fetch_all(
            "SELECT * FROM jobs WHERE owner = ? AND (created, id) < (?, ?) ORDER BY created DESC, id DESC LIMIT ?",
            (owner, *cursor, limit),
        )
        return [_job(row) for row in rows]

    async def unfinished(self) -> list[Job]:
        """Return all unfinished jobs in the order of their creation, and set their states to `queued`."""
        await self._database.execute("UPDATE jobs SET state = 'queued', started = NULL WHERE finished IS NULL")
        rows = await self._database.fetch_all("SELECT * FROM jobs WHERE finished IS NULL ORDER BY created")
        return [_job(row) for row in rows]

    async def set_running(self, id_: str, now: float) -> None:
        """Set the state of a job to `running`; no effect on a job that has ended."""
        await self._database.execute(
            "UPDATE jobs SET state = 'running', started = ? WHERE id = ? AND finished IS NULL", (now, id_)
        )

    async def finish(
        self,
        id_: str,
        state: str,
        now: float,
        *,
        images: Sequence[Mapping[str, Any]] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> bool:
        """End a job and schedule its webhook. Return False if the job has ended already."""
        changed = await self._database.execute(
            "UPDATE jobs SET state = ?, finished = ?, expires = ?, images = ?, error = ?,"
            " webhook_next = CASE WHEN webhook_url IS NULL THEN NULL ELSE ? END WHERE id = ? AND finished IS NULL",
            (state, now, now + self.retention_seconds, _text(images), _text(error), now, id_),
        )
        return changed > 0

    async def delete_expired(self, now: float) -> int:
        """Delete expired jobs; return their number."""
        return await self._database.execute("DELETE FROM jobs WHERE expires <= ?", (now,))

    # ---- webhooks ----------------------------------------------------------------------------------------

    async def due_webhooks(self, now: float, limit: int) -> list[Job]:
        """Return up to `limit` jobs of each owner whose webhooks are due, the longest due first."""
        rows = await self._database.fetch_all(
            "SELECT jobs.* FROM keys CROSS JOIN jobs WHERE jobs.rowid IN"
            " (SELECT rowid FROM jobs AS due WHERE due.owner = keys.id AND due.webhook_next <= ?"
            " ORDER BY due.webhook_next LIMIT ?) ORDER BY jobs.webhook_next",
            (now, limit),
        )
        return [_job(row) for row in rows]

    async def next_webhook(self, now: float) -> float | None:
        """Return the time at which the next webhook after `now` is due; None if there is none."""
        row = await self._database.fetch_one("SELECT min(webhook_next) FROM jobs WHERE webhook_next > ?", (now,))
        return None if row is None else row[0]

    async def set_webhook(self, id_: str, attempts: int, next_: float | None) -> None:
        """Store the number of attempts and the time of the next one; None if there is no next attempt."""
        await self._database.execute(
            "UPDATE jobs SET webhook_attempts = ?, webhook_next = ? WHERE id = ?", (attempts, next_, id_)
        )


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _job(row: Row) -> Job:
    request = json.loads(row["options"])
    return Job(
        id=row["id"],
        owner=row["owner"],
        state=row["state"],
        prompt=row["prompt"],
        options=request["options"],
        inputs=tuple(request["inputs"]),
        # Absent in jobs of earlier versions.
        input_bytes=request.get("input_bytes", len(request["inputs"]) * _UNKNOWN_BYTES),
        token=row["token"],
        base_url=row["base_url"],
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        expires=row["expires"],
        images=None if row["images"] is None else json.loads(row["images"]),
        error=None if row["error"] is None else json.loads(row["error"]),
        fingerprint=row["fingerprint"],
        webhook_url=row["webhook_url"],
        webhook_attempts=row["webhook_attempts"],
    )
