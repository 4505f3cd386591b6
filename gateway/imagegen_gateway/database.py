"""The gateway's SQLite file: one connection, whose statements run in order on a thread of its own."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite

VERSION = 1
FILE = "gateway.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    hash TEXT UNIQUE,
    webhook_secret TEXT NOT NULL,
    limits TEXT NOT NULL,
    created REAL NOT NULL,
    revoked REAL
) STRICT;
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    prompt TEXT NOT NULL,
    options TEXT NOT NULL,
    token TEXT NOT NULL,
    base_url TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    expires REAL,
    images TEXT,
    error TEXT,
    idempotency_key TEXT,
    fingerprint TEXT NOT NULL,
    webhook_url TEXT,
    webhook_next REAL,
    webhook_attempts INTEGER NOT NULL DEFAULT 0,
    UNIQUE (owner, idempotency_key)
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, created);
CREATE INDEX IF NOT EXISTS jobs_unfinished ON jobs (created) WHERE finished IS NULL;
CREATE INDEX IF NOT EXISTS jobs_expiring ON jobs (expires) WHERE expires IS NOT NULL;
CREATE INDEX IF NOT EXISTS webhooks_due ON jobs (webhook_next) WHERE webhook_next IS NOT NULL;
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY,
    media_type TEXT NOT NULL,
    expires REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS files_expiring ON files (expires);
"""

Row = aiosqlite.Row


class DatabaseError(Exception):
    """The file can't be used; the message says why."""


class Database:
    """Statements and transactions; safe for any number of tasks."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return all rows of a query."""
        return list(await self._connection.execute_fetchall(statement, values))

    async def row(self, statement: str, values: Sequence[Any] = ()) -> Row | None:
        """Return the first row of a query, or None."""
        found = await self.rows(statement, values)
        return found[0] if found else None

    async def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run one statement, which is on the disk when this returns; return how many rows it changed."""
        async with self._connection.execute(statement, values) as cursor:
            return cursor.rowcount

    async def change_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for each row."""
        await self._connection.executemany(statement, rows)


async def check_database(folder: Path) -> None:
    """Open the file and close it. Raises `DatabaseError`."""
    async with open_database(folder):
        pass


@asynccontextmanager
async def open_database(folder: Path) -> AsyncIterator[Database]:
    """Open the file in a folder, which is made if need be. Raises `DatabaseError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Each statement is a transaction: nothing waits, half done, for a commit that another task gives.
        opened = aiosqlite.connect(folder / FILE, isolation_level=None, timeout=30)
        async with opened as connection:
            connection.row_factory = aiosqlite.Row
            await connection.execute("PRAGMA journal_mode = WAL")
            await connection.execute("PRAGMA synchronous = FULL")
            [found] = await connection.execute_fetchall("PRAGMA user_version")
            if found[0] not in (0, VERSION):
                raise DatabaseError(f"{folder / FILE} is of version {found[0]}; this gateway knows {VERSION}")
            await connection.executescript(_SCHEMA)
            await connection.execute(f"PRAGMA user_version = {VERSION}")
            yield Database(connection)
    except (OSError, aiosqlite.Error) as error:
        raise DatabaseError(f"{folder / FILE}: {error}") from error
