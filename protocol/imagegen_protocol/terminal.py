"""Text of other peers on a terminal: control characters could move the cursor, set the title or the clipboard."""

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, delete, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # direction marks, line and paragraph separators
    "\ud800-\udfff]"  # halves of surrogate pairs, which can't be encoded
)


def escape_controls(text: str) -> str:
    r"""Return the text with control characters as `\u001b`, the notation of JSON, so that JSON stays valid.

    Tabs and line feeds stay.
    """
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
