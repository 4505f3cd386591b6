"""Detection of image formats by their first bytes."""

from imagegen_protocol.request import OutputFormat

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


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
