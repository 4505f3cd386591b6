"""Where pictures go: found out before anybody draws them, and written whole or not at all."""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from imagegen_cli.naming import LATE_FIELDS, MAX_NAME_BYTES, NamePattern, plain, slug
from imagegen_cli.prompts import Order
from imagegen_common.files import replacing

DEFAULT_PATTERN = "imagegen-{seed}"
_SUFFIXES = {"jpeg": ".jpg"}
"""What a format is called in a file's name, where it is not just its own."""
_PLAIN_SUFFIXES = frozenset(("", ".png", ".jpg", ".jpeg", ".webp"))
"""Known without asking Pillow, which takes longer to import than all the rest."""


class Existing(Enum):
    """What becomes of a file that is there already."""

    REFUSE = "refuse"
    SKIP = "skip"
    OVERWRITE = "overwrite"


class Pictures(Protocol):
    """What is asked of a result."""

    @property
    def worker(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def formats(self) -> list[str]: ...
    def save_image(self, index: int, path: str | Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Targets:
    """A folder, and what the files in it are called."""

    folder: Path
    pattern: NamePattern
    existing: Existing = Existing.REFUSE

    def paths(self, order: Order, formats: Sequence[str], late: Mapping[str, str]) -> list[Path]:
        """Return the file of each image; `late`: the fields that only the result tells."""
        several = len(order.seeds) > 1
        pattern = self.pattern.numbered() if several and not self.pattern.tells_images_apart else self.pattern
        shared: dict[str, int | str] = {"index": order.index, "prompt": slug(order.prompt)}
        shared |= {name: plain(value) for name, value in late.items()}
        paths = []
        for image, (seed, format_) in enumerate(zip(order.seeds, formats, strict=True)):
            name = pattern.fill({**shared, "seed": seed, "image": image})
            suffix = "" if pattern.suffix else _SUFFIXES.get(format_, f".{format_}")
            paths.append(self.folder / f"{name}{suffix}")
        return paths

    def write(self, order: Order, result: Pictures) -> list[Path]:
        """Write the images of a result and return their files. Raises `ValueError` and `OSError`."""
        paths = self.paths(order, result.formats, {"worker": result.worker, "model": result.model})
        written = []
        for image, path in enumerate(paths):
            if self.existing is Existing.SKIP and path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(result, image, path, overwrite=self.existing is Existing.OVERWRITE)
            written.append(path)
        return written


def _write_whole(result: Pictures, image: int, path: Path, *, overwrite: bool) -> None:
    """Write an image; readers never see a part of it. Raises `FileExistsError` unless `overwrite`."""
    if not overwrite:
        path.touch(exist_ok=False)
    try:
        with replacing(path) as temporary:
            result.save_image(image, temporary)
    except BaseException:
        if not overwrite:
            path.unlink(missing_ok=True)
        raise


def choose(out: str | None, pattern: str | None, existing: Existing, *, several: bool) -> Targets:
    """Return where pictures go: `out` is a file, or a folder, which is made.

    A folder if there is one, with a pattern, for several prompts, and when it ends in a slash. Raises
    `ValueError` saying what is wrong with it, and `OSError` where the folder can't be made.
    """
    path = Path(out) if out else Path()
    is_folder = out is None or pattern is not None or out.endswith("/") or path.is_dir()
    if not is_folder and several:
        if path.suffix.lower() in _PLAIN_SUFFIXES - {""}:
            raise ValueError(f"several prompts need a folder (and --pattern for the names), got the file {out!r}")
        is_folder = True
    if is_folder:
        if path.exists() and not path.is_dir():
            raise ValueError(f"expected a folder, {path} is a file")
        targets = Targets(path, NamePattern(pattern or DEFAULT_PATTERN), existing)
        path.mkdir(parents=True, exist_ok=True)
    else:
        targets = Targets(path.parent, NamePattern(path.name.replace("{", "{{").replace("}", "}}")), existing)
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent}")
    if not os.access(targets.folder, os.W_OK | os.X_OK):
        raise ValueError(f"the folder {targets.folder} can't be written")
    if (suffix := targets.pattern.suffix.lower()) not in _PLAIN_SUFFIXES:
        _check_suffix(suffix)
    return targets


def check_orders(targets: Targets, orders: Sequence[Order]) -> list[Order]:
    """Return the orders that are to be drawn: with `Existing.SKIP`, those of which a file is missing.

    Raises `ValueError` for two pictures with one name, and for a file that is there and must not be lost; one
    whose name only the result tells is looked at when it is written.
    """
    told: Counter[Path] = Counter()
    left = []
    for order in orders:
        options: Mapping[str, Any] = order.options
        known = {"model": str(options["model"])} if options.get("model") else {}
        unknown = (targets.pattern.fields & LATE_FIELDS) - known.keys()
        formats = [str(options.get("output_format") or "png")] * len(order.seeds)
        paths = targets.paths(order, formats, {name: name for name in unknown} | known)
        told.update(paths)
        if unknown and targets.existing is Existing.SKIP:
            raise ValueError(f"{{{min(unknown)}}} is known too late to skip what is there")
        there = [not unknown and _is_there(path, targets.existing) for path in paths]
        if targets.existing is not Existing.SKIP or not all(there):
            left.append(order)
    path, times = max(told.items(), key=lambda item: item[1])
    if times > 1:
        raise ValueError(f"{times} pictures would be called {path}: put {{index}} or {{seed}} into the name")
    return left


def _is_there(path: Path, existing: Existing) -> bool:
    if len(path.name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"the name {path.name[:40]}... is longer than {MAX_NAME_BYTES} bytes")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    if not path.exists():
        return False
    if existing is Existing.REFUSE:
        raise ValueError(f"{path} is there already; say --overwrite or --skip-existing")
    return True


def _check_suffix(suffix: str) -> None:
    from PIL import Image

    kind = Image.registered_extensions().get(suffix)
    if kind not in Image.SAVE:
        raise ValueError(f"no picture format to write goes by {suffix!r}; .png, .jpg, .webp and some 40 others do")
    try:
        # Some formats take no colours, some want a library that is not there.
        Image.new("RGB", (16, 16)).save(io.BytesIO(), format=kind)
    except (OSError, ValueError) as error:
        raise ValueError(f"pictures can't be written as {suffix!r} ({kind}): {error}") from error
