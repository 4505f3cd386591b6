"""PNG files for answers of the tool, made without an image library."""

import os
import struct
import zlib


def png(side: int) -> bytes:
    """Return a PNG of random pixels; it has about 3 × `side`² bytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + os.urandom(3 * side) for _ in range(side))
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_part(kind, data) for kind, data in parts)


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
