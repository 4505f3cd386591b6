"""Files that are written whole or not at all."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` at the end, and is removed if the block raises.

    Readers see the old file or the new one, never a part. The suffix stays, for writers that derive the format
    from it. Raises `OSError` as `Path.replace` does.
    """
    temporary = path.with_name(f".part-{os.getpid()}-{threading.get_native_id()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
