"""Files that are not what they say."""

import io
import struct
import zlib

from PIL import Image


def huge_png(width, height):
    """A PNG of some bytes that claims to be so many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [header, data, b"IEND"]
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def huge_webp(width, height):
    """A small animated WebP whose canvas claims to be so many pixels."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="WEBP", save_all=True, append_images=frames[1:])
    data = bytearray(buffer.getvalue())
    assert data[12:16] == b"VP8X"
    data[24:27] = (width - 1).to_bytes(3, "little")
    data[27:30] = (height - 1).to_bytes(3, "little")
    return bytes(data)


def with_empty_chunks(number, before=b"IEND"):
    """Return a PNG of 8x8 pixels with many empty chunks, before one of its own chunks."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    at = data.index(before) - 4
    empty = b"\0\0\0\0teSt" + zlib.crc32(b"teSt").to_bytes(4, "big")
    return data[:at] + number * empty + data[at:]
