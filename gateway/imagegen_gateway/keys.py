"""API keys, stored as SHA-256 hashes.

A key is 32 random bytes and can't be guessed, so a slow password hash would add latency and no security.
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
ANONYMOUS = "everybody"
"""Name of the owner of all requests while the gateway requires no keys."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored API key and its limits. Times are seconds since 1970."""

    id: str
    name: str
    limits: Limits
    webhook_secret: str
    created: float
    revoked: float | None = None


class ApiKeyError(ValueError):
    """A key can't be created or changed; the message gives the reason."""


class ApiKeyStore:
    """API keys in the database. Changes apply from the next request on, in every process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, name: str, limits: Limits, now: float) -> tuple[str, ApiKey]:
        """Create a key; return its text, which is not stored, and its record.

        Raises `ApiKeyError` if the name is taken.
        """
        if name == ANONYMOUS:
            raise ApiKeyError(f"the name {name!r} is reserved for requests without keys; choose another name")
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        if not await self._insert(name, _hash(key), limits, now):
            raise ApiKeyError(f"the name {name!r} is or was used by another key; choose another name")
        return key, await self.by_name(name)

    async def find(self, key: str) -> ApiKey | None:
        """Return the record of a key; None if the key is unknown or revoked."""
        row = await self._database.fetch_one(
            "SELECT * FROM keys WHERE hash = ? AND revoked IS NULL", (_hash(key),)
        )
        return None if row is None else _api_key(row)

    async def anonymous(self, now: float) -> ApiKey:
        """Return the record for requests without keys; create it if it does not exist."""
        query = "SELECT * FROM keys WHERE name = ?"
        row = await self._database.fetch_one(query, (ANONYMOUS,))
        if row is None:
            await self._insert(ANONYMOUS, None, UNLIMITED, now)
            row = await self._database.fetch_one(query, (ANONYMOUS,))
            assert row is not None, "this process or another one has just inserted it"
        return _api_key(row)

    async def by_id(self, id_: str) -> ApiKey | None:
        """Return the record with this id, revoked or not; None if there is none."""
        row = await self._database.fetch_one("SELECT * FROM keys WHERE id = ?", (id_,))
        return None if row is None else _api_key(row)

    async def by_name(self, name: str) -> ApiKey:
        """Return the record with this name, revoked or not. Raises `ApiKeyError` if there is none."""
        row = await self._database.fetch_one("SELECT * FROM keys WHERE name = ?", (name,))
        if row is None:
            names = [api_key.name for api_key in await self.all()]
            raise ApiKeyError(f"there is no key {name!r}; existing keys: {', '.join(names) or 'none'}")
        return _api_key(row)

    async def all(self) -> list[ApiKey]:
        """Return all records, oldest first."""
        return [
            _api_key(row) for row in await self._database.fetch_all("SELECT * FROM keys ORDER BY created, name")
        ]

    async def revoke(self, name: str, now: float) -> None:
        """Revoke a key. Raises `ApiKeyError` if there is no key with this name."""
        await self.by_name(name)
        await self._database.execute("UPDATE keys SET revoked = ? WHERE name = ? AND revoked IS NULL", (now, name))

    async def _insert(self, name: str, hash_: str | None, limits: Limits, now: float) -> bool:
        """Insert a key; return False if the name is taken."""
        secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
        inserted = await self._database.execute(
            "INSERT INTO keys (id, name, hash, webhook_secret, limits, created) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO NOTHING",
            ("key_" + secrets.token_hex(8), name, hash_, secret, json.dumps(limits.as_json()), now),
        )
        return inserted > 0


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _api_key(row: Row) -> ApiKey:
    limits = UNLIMITED if row["name"] == ANONYMOUS else Limits.from_json(json.loads(row["limits"]))
    return ApiKey(row["id"], row["name"], limits, row["webhook_secret"], row["created"], row["revoked"])
