"""API keys: made once, kept as hashes.

A key is 32 random bytes, so there is nothing to guess. A slow hash guards passwords, which can be guessed; here it
would only make each request slow.
"""

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass

from imagegen_gateway.core.limits import UNLIMITED, Limits
from imagegen_gateway.core.signing import PREFIX as SECRET_PREFIX
from imagegen_gateway.database import Database, Row

KEY_PREFIX = "imagegen_"
EVERYBODY = "everybody"
"""Who asks where no keys are needed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a key, by its id, and what it may."""

    id: str
    name: str
    limits: Limits
    webhook_secret: str
    created: float
    revoked: float | None = None


class ApiKeyError(ValueError):
    """A key can't be made or changed; the message says why."""


class Keys:
    """The keys in the database. What is changed there counts from the next request on, in every process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, name: str, limits: Limits, now: float) -> tuple[str, Caller]:
        """Make a key; return it, which is not kept, and its owner. Raises `ApiKeyError` if the name is taken."""
        if name == EVERYBODY:
            raise ApiKeyError(f"{name!r} stands for whoever asks where no keys are needed; take another name")
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        if not await self._insert(name, _hash(key), limits, now):
            raise ApiKeyError(f"there is, or was, a key {name!r}; take another name")
        return key, await self.by_name(name)

    async def find(self, key: str) -> Caller | None:
        """Return who a key stands for; None for one that is unknown or revoked."""
        row = await self._database.row("SELECT * FROM keys WHERE hash = ? AND revoked IS NULL", (_hash(key),))
        return None if row is None else _caller(row)

    async def everybody(self, now: float) -> Caller:
        """Return who asks where no keys are needed."""
        find = "SELECT * FROM keys WHERE name = ?"
        row = await self._database.row(find, (EVERYBODY,))
        if row is None:
            await self._insert(EVERYBODY, None, UNLIMITED, now)
            row = await self._database.row(find, (EVERYBODY,))
            assert row is not None, "it was just put there, by us or beside us"
        return _caller(row)

    async def by_id(self, id_: str) -> Caller | None:
        """Return who an id stands for, revoked or not."""
        row = await self._database.row("SELECT * FROM keys WHERE id = ?", (id_,))
        return None if row is None else _caller(row)

    async def by_name(self, name: str) -> Caller:
        """Return who a name stands for, revoked or not. Raises `ApiKeyError`."""
        row = await self._database.row("SELECT * FROM keys WHERE name = ?", (name,))
        if row is None:
            names = [caller.name for caller in await self.all()]
            raise ApiKeyError(f"there is no key {name!r}; there are: {', '.join(names) or 'none'}")
        return _caller(row)

    async def all(self) -> list[Caller]:
        """Return all, the oldest first."""
        return [_caller(row) for row in await self._database.rows("SELECT * FROM keys ORDER BY created, name")]

    async def revoke(self, name: str, now: float) -> None:
        """Refuse a key from now on. Raises `ApiKeyError`."""
        await self.by_name(name)
        await self._database.change("UPDATE keys SET revoked = ? WHERE name = ? AND revoked IS NULL", (now, name))

    async def _insert(self, name: str, hash_: str | None, limits: Limits, now: float) -> bool:
        """Insert a key; False: the name is taken."""
        secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
        inserted = await self._database.change(
            "INSERT INTO keys (id, name, hash, webhook_secret, limits, created) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO NOTHING",
            ("key_" + secrets.token_hex(8), name, hash_, secret, json.dumps(limits.as_json()), now),
        )
        return inserted > 0


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _caller(row: Row) -> Caller:
    limits = UNLIMITED if row["name"] == EVERYBODY else Limits.from_json(json.loads(row["limits"]))
    return Caller(row["id"], row["name"], limits, row["webhook_secret"], row["created"], row["revoked"])
