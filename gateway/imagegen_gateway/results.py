"""Images that are kept for a while, in any folder that fsspec knows: a disk, S3, GCS, …"""

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from imagegen_common.addresses import ConfigError
from imagegen_gateway.database import Database

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


class Results:
    """The folder, and the list of what may be fetched from it. A name can't be guessed: who has it may read."""

    def __init__(self, url: str, database: Database) -> None:
        """`url`: a path, or what fsspec takes. Raises `ConfigError` as `open_folder` does."""
        self._fs, self._folder = self.open_folder(url)
        self._database = database

    @staticmethod
    def open_folder(url: str) -> tuple[Any, str]:
        """Return the file system and the folder, which is made if need be. Raises `ConfigError`."""
        try:
            fs, folder = fsspec.core.url_to_fs(url)
            fs.makedirs(folder, exist_ok=True)
        except Exception as error:  # each file system raises its own
            raise ConfigError(f"--results-url: {url} can't be used: {error}") from error
        return fs, folder

    @staticmethod
    def new_token() -> str:
        """Return the random part of names."""
        return secrets.token_urlsafe(24)

    async def write(self, name: str, data: bytes) -> None:
        """Write a file, over what was there."""
        await asyncio.to_thread(self._fs.pipe_file, self._path(name), data)

    async def read(self, name: str) -> bytes:
        """Return a file. Raises `OSError`."""
        data: bytes = await asyncio.to_thread(self._fs.cat_file, self._path(name))
        return data

    async def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        with suppress(FileNotFoundError):
            await asyncio.to_thread(self._fs.rm_file, self._path(name))

    async def keep(self, name: str, media_type: str, data: bytes, expires: float) -> None:
        """Write a file that may be fetched by its name until it expires."""
        await self.write(name, data)
        await self._database.change(
            "INSERT OR REPLACE INTO files (name, media_type, expires) VALUES (?, ?, ?)",
            (name, media_type, expires),
        )

    async def fetch(self, name: str, now: float) -> tuple[bytes, str] | None:
        """Return a file and its media type; None if it is not there, or not any more."""
        row = await self._database.row("SELECT media_type FROM files WHERE name = ? AND expires > ?", (name, now))
        if row is None:
            return None
        try:
            return await self.read(name), row["media_type"]
        except FileNotFoundError:
            return None

    async def sweep(self, now: float) -> int:
        """Remove what has expired; return how many files it was."""
        gone = await self._database.rows("SELECT name FROM files WHERE expires <= ? LIMIT 1000", (now,))
        for row in gone:
            await self.remove(row["name"])
            await self._database.change("DELETE FROM files WHERE name = ?", (row["name"],))
        return len(gone)

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}"


def default_url(state_folder: Path) -> str:
    """Return where results are kept unless the operator says otherwise."""
    return str(state_folder / "results")
