"""Storage of images until they expire, in any file system that fsspec supports: local disk, S3, GCS, …"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from imagegen_common.addresses import ConfigError
from imagegen_gateway.database import Database

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

PART_BYTES = 256 * 1024
"""Size of the parts in which a file is read for a client; each part is one request to a bucket."""


class ImageStore:
    """Files in one folder; clients can fetch published ones. The names are secrets that grant access."""

    def __init__(self, url: str, database: Database) -> None:
        """Open the folder at `url`, a path or a URL that fsspec supports. Raises `ConfigError`."""
        self._fs, self._folder = self.open_folder(url)
        self._database = database

    @staticmethod
    def open_folder(url: str) -> tuple[Any, str]:
        """Return the file system and path of a folder; create it if it does not exist. Raises `ConfigError`."""
        try:
            fs, folder = fsspec.core.url_to_fs(url)
            fs.makedirs(folder, exist_ok=True)
        except Exception as error:  # each file system raises errors of its own
            raise ConfigError(f"--results-url: {url} can't be used: {error}") from error
        return fs, folder

    @staticmethod
    def new_token() -> str:
        """Return a new random part for file names."""
        return secrets.token_urlsafe(24)

    async def write(self, name: str, data: bytes) -> None:
        """Write or replace a file."""
        await asyncio.to_thread(self._fs.pipe_file, self._path(name), data)

    async def read(self, name: str) -> bytes:
        """Return the content of a file. Raises `OSError`."""
        data: bytes = await asyncio.to_thread(self._fs.cat_file, self._path(name))
        return data

    async def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError):
            await asyncio.to_thread(self._fs.rm_file, self._path(name))

    async def publish(self, name: str, media_type: str, data: bytes, expires: float) -> None:
        """Write a file that clients can fetch until `expires`, in seconds since 1970."""
        await self.write(name, data)
        await self._database.execute(
            "INSERT OR REPLACE INTO files (name, media_type, expires) VALUES (?, ?, ?)",
            (name, media_type, expires),
        )

    async def find(self, name: str, now: float) -> tuple[str, int] | None:
        """Return the media type and size of a published file; None if it does not exist or has expired."""
        row = await self._database.fetch_one(
            "SELECT media_type FROM files WHERE name = ? AND expires > ?", (name, now)
        )
        if row is None:
            return None
        try:
            return row["media_type"], await asyncio.to_thread(self._fs.size, self._path(name))
        except FileNotFoundError:
            return None

    async def read_parts(self, name: str, size: int) -> AsyncGenerator[bytes, None]:
        """Yield the content of a file of this size in parts, each read when the one before has been taken."""
        for start in range(0, size, PART_BYTES):
            end = min(start + PART_BYTES, size)
            yield await asyncio.to_thread(self._fs.cat_file, self._path(name), start=start, end=end)

    async def delete_expired(self, now: float) -> int:
        """Delete up to 1000 expired files; return their number."""
        expired = await self._database.fetch_all("SELECT name FROM files WHERE expires <= ? LIMIT 1000", (now,))
        for row in expired:
            await self.remove(row["name"])
            await self._database.execute("DELETE FROM files WHERE name = ?", (row["name"],))
        return len(expired)

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}"


def default_url(state_folder: Path) -> str:
    """Return the default folder for images."""
    return str(state_folder / "results")
