"""The gateway's SQLite database: one connection; aiosqlite runs its statements in order in a thread."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite

from imagegen_gateway.state_folder import create_private

VERSION = 1
"""Version of the schema."""
FILE = "gateway.sqlite"
STATE_FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm", "lock", "results")
"""Files and folders that the gateway creates in its state folder."""

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
CREATE INDEX IF NOT EXISTS webhooks_by_owner ON jobs (owner, webhook_next) WHERE webhook_next IS NOT NULL;
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY,
    media_type TEXT NOT NULL,
    expires REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS files_expiring ON files (expires);
"""

Row = aiosqlite.Row


class DatabaseError(Exception):
    """The database file can't be opened; the message gives the reason."""


class Database:
    """SQL statements, each in a transaction of its own; safe for concurrent tasks."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def fetch_all(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return all rows of a query."""
        return list(await self._connection.execute_fetchall(statement, values))

    async def fetch_one(self, statement: str, values: Sequence[Any] = ()) -> Row | None:
        """Return the first row of a query, or None."""
        rows = await self.fetch_all(statement, values)
        return rows[0] if rows else None

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run a statement, durable on return; return the number of changed rows."""
        async with self._connection.execute(statement, values) as cursor:
            return cursor.rowcount


async def check_database(folder: Path) -> None:
    """Check that the database can be opened. Raises `DatabaseError`."""
    async with open_database(folder):
        pass


@asynccontextmanager
async def open_database(folder: Path) -> AsyncIterator[Database]:
    """Open the database in a folder; create both if they do not exist. Raises `DatabaseError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_private(folder / FILE)  # SQLite gives its other files the mode of this one
        # Autocommit: tasks share the connection, so no task may leave a transaction open.
        async with aiosqlite.connect(folder / FILE, isolation_level=None, timeout=30) as connection:
            connection.row_factory = aiosqlite.Row
            await connection.execute("PRAGMA journal_mode = WAL")
            await connection.execute("PRAGMA synchronous = FULL")
            [row] = await connection.execute_fetchall("PRAGMA user_version")
            if row[0] not in (0, VERSION):
                raise DatabaseError(
                    f"{folder / FILE} has schema version {row[0]}; this gateway supports version {VERSION}"
                )
            await connection.executescript(_SCHEMA)
            await connection.execute(f"PRAGMA user_version = {VERSION}")
            yield Database(connection)
    except (OSError, aiosqlite.Error) as error:
        raise DatabaseError(f"{folder / FILE}: {error}") from error
