"""Formats and sizes of images by their first bytes, without decoding them, and files with limits for decoders."""

import io
import struct

from imagegen_protocol.request import OutputFormat

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments of a JPEG that contain its size."""

MAX_READS = 64 * 1024
"""Maximum number of reads from a file. Decoders read each PNG chunk and JPEG segment separately, in Python."""
MAX_CHUNKS = 16 * 1024
"""Maximum number of chunks of a PNG. Encoders that write chunks of 4 KiB reach it at 64 MiB."""


class BoundedFile(io.BytesIO):
    """An untrusted image file for a decoder.

    It raises `ValueError` if it is a PNG of too many chunks, and at the read beyond `MAX_READS`: a file of a few
    megabytes in millions of parts would occupy a decoder, and the lock of the interpreter, for seconds.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        _check_chunks(data)
        super().__init__(data)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read some bytes."""
        self._reads += 1
        if self._reads > MAX_READS:
            raise ValueError(f"it has more than {MAX_READS} parts")
        return super().read(size)


def _check_chunks(data: bytes | memoryview) -> None:
    """Raise `ValueError` for a PNG with too many chunks anywhere: a decoder visits all, opening only the first."""
    if data[: len(_PNG)] != _PNG:
        return
    at, chunks = len(_PNG), 0
    while at < len(data):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise ValueError(f"expected a PNG with at most {MAX_CHUNKS} chunks")


def sniff_format(data: bytes | memoryview) -> OutputFormat | None:
    """Return the format of an image file; None if it is none of the protocol's formats."""
    head = bytes(data[:12])
    if head.startswith(_PNG):
        return "png"
    if head.startswith(_JPEG):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return None


_OTHER_FORMATS = (
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"%PDF", "a PDF file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
)
_HEIF_BRANDS = {b"avif": "an AVIF image", b"avis": "an AVIF image"}
_HEIF_BRANDS |= dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "a HEIC image")


def describe_format(data: bytes | memoryview) -> str:
    """Return what a file is that is none of the protocol's formats, for an error: "a HEIC image"."""
    head = bytes(data[:64])
    if not head:
        return "an empty file"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return _HEIF_BRANDS[head[8:12]]
    for start, name in _OTHER_FORMATS:
        if head.startswith(start):
            return name
    if head.isascii() and head.decode().isprintable():
        return f"{len(data)} bytes of text"
    return f"{len(data)} bytes of an unknown format"


def read_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return width and height of a PNG or JPEG; None for other formats and broken headers."""
    try:
        match sniff_format(data):
            case "png" if data[12:16] == b"IHDR":
                width, height = struct.unpack_from(">II", data, 16)
                return width, height
            case "jpeg":
                return _read_jpeg_size(data)
    except (struct.error, IndexError):  # the header is cut off
        pass
    return None


def _read_jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return the size in the first frame header; the segments before it are skipped."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None
