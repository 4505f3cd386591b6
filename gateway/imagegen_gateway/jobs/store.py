"""The jobs in the database: what was accepted is there before anybody is told so, and ends once."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiosqlite

from imagegen_gateway.database import Database, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as it is kept. Times are seconds since 1970."""

    id: str
    owner: str
    state: str
    prompt: str
    options: dict[str, Any]
    """The client's `RequestOptions`, seed included, images aside."""
    inputs: tuple[str, ...]
    """The images that go along: `image`, `mask_image`."""
    token: str
    """The part of its files' names that can't be guessed."""
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


class Store:
    """Reads and writes jobs. `now` is in seconds since 1970."""

    def __init__(self, database: Database, kept_seconds: float) -> None:
        self._database = database
        self.kept_seconds = kept_seconds

    async def add(
        self,
        *,
        owner: str,
        prompt: str,
        options: Mapping[str, Any],
        inputs: Sequence[str],
        token: str,
        base_url: str,
        fingerprint: str,
        idempotency_key: str | None,
        webhook_url: str | None,
        now: float,
    ) -> Job | None:
        """Take a job in, and return it; None if the owner has used the `idempotency_key` before."""
        id_ = "job_" + secrets.token_hex(16)
        said = json.dumps({"options": dict(options), "inputs": list(inputs)})
        try:
            await self._database.change(
                "INSERT INTO jobs (id, owner, state, prompt, options, token, base_url, created, fingerprint,"
                " idempotency_key, webhook_url) VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?)",
                (id_, owner, prompt, said, token, base_url, now, fingerprint, idempotency_key, webhook_url),
            )
        except aiosqlite.IntegrityError:
            return None
        return await self.get(id_)

    async def get(self, id_: str, owner: str | None = None) -> Job | None:
        """Return a job; with `owner`, only that one's."""
        row = await self._database.row("SELECT * FROM jobs WHERE id = ?", (id_,))
        return None if row is None or (owner is not None and row["owner"] != owner) else _job(row)

    async def by_idempotency_key(self, owner: str, key: str) -> Job | None:
        """Return the job for which the owner used this key."""
        row = await self._database.row("SELECT * FROM jobs WHERE owner = ? AND idempotency_key = ?", (owner, key))
        return None if row is None else _job(row)

    async def newest(self, owner: str, limit: int, before: Job | None) -> list[Job]:
        """Return the owner's jobs, the newest first; `before`: only those older than it."""
        edge = (float("inf"), "") if before is None else (before.created, before.id)
        rows = await self._database.rows(
            "SELECT * FROM jobs WHERE owner = ? AND (created, id) < (?, ?) ORDER BY created DESC, id DESC LIMIT ?",
            (owner, *edge, limit),
        )
        return [_job(row) for row in rows]

    async def unfinished(self) -> list[Job]:
        """Return all that have not ended, in the order of their coming; none of them runs any more."""
        await self._database.change("UPDATE jobs SET state = 'queued', started = NULL WHERE finished IS NULL")
        rows = await self._database.rows("SELECT * FROM jobs WHERE finished IS NULL ORDER BY created")
        return [_job(row) for row in rows]

    async def set_running(self, id_: str, now: float) -> None:
        """Say that a job has begun; one that has ended stays so."""
        await self._database.change(
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
        """End a job, and have its webhook called; False if it has ended already."""
        changed = await self._database.change(
            "UPDATE jobs SET state = ?, finished = ?, expires = ?, images = ?, error = ?,"
            " webhook_next = CASE WHEN webhook_url IS NULL THEN NULL ELSE ? END WHERE id = ? AND finished IS NULL",
            (state, now, now + self.kept_seconds, _text(images), _text(error), now, id_),
        )
        return changed > 0

    async def sweep(self, now: float) -> int:
        """Forget what has expired; return how many jobs it was."""
        return await self._database.change("DELETE FROM jobs WHERE expires <= ?", (now,))

    # ---- webhooks ----------------------------------------------------------------------------------------

    async def due_webhooks(self, now: float, limit: int) -> list[Job]:
        """Return jobs whose webhook is to be called now, the longest due first."""
        rows = await self._database.rows(
            "SELECT * FROM jobs WHERE webhook_next <= ? ORDER BY webhook_next LIMIT ?", (now, limit)
        )
        return [_job(row) for row in rows]

    async def next_webhook(self, now: float) -> float | None:
        """Return when the next webhook after `now` is due; None: none is."""
        row = await self._database.row("SELECT min(webhook_next) FROM jobs WHERE webhook_next > ?", (now,))
        return None if row is None else row[0]

    async def set_webhook(self, id_: str, attempts: int, next_: float | None) -> None:
        """Note so many attempts, and when the next one is due; None: there is none."""
        await self._database.change(
            "UPDATE jobs SET webhook_attempts = ?, webhook_next = ? WHERE id = ?", (attempts, next_, id_)
        )


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _job(row: Row) -> Job:
    said = json.loads(row["options"])
    return Job(
        id=row["id"],
        owner=row["owner"],
        state=row["state"],
        prompt=row["prompt"],
        options=said["options"],
        inputs=tuple(said["inputs"]),
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
