"""Paths of the generated images: checked before anything is generated, written atomically."""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from imagegen_cli.file_names import MAX_NAME_BYTES, RESULT_FIELDS, FileNamePattern, sanitize, slug
from imagegen_cli.prompts import PreparedRequest
from imagegen_common.files import replacing

DEFAULT_PATTERN = "imagegen-{seed}"
_SUFFIXES = {"jpeg": ".jpg"}
"""Suffix of a format, where it differs from the format's name."""
_COMMON_SUFFIXES = frozenset(("", ".png", ".jpg", ".jpeg", ".webp"))
"""Suffixes accepted without importing Pillow, which is slow."""


class Existing(Enum):
    """Handling of a file that exists."""

    REFUSE = "refuse"
    SKIP = "skip"
    OVERWRITE = "overwrite"


class EncodedImages(Protocol):
    """The part of a result that is used for writing files."""

    @property
    def worker(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def formats(self) -> list[str]: ...
    def save_image(self, index: int, path: str | Path) -> None: ...


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """Output folder and the names of its files."""

    folder: Path
    pattern: FileNamePattern
    existing: Existing = Existing.REFUSE

    def paths(
        self, request: PreparedRequest, formats: Sequence[str], result_fields: Mapping[str, str]
    ) -> list[Path]:
        """Return the path of each image; `result_fields`: values of the fields known only from the result."""
        several = len(request.seeds) > 1
        pattern = self.pattern.numbered() if several and not self.pattern.distinguishes_images else self.pattern
        shared: dict[str, int | str] = {"index": request.index, "prompt": slug(request.prompt)}
        shared |= {name: sanitize(value) for name, value in result_fields.items()}
        paths = []
        for image, (seed, format_) in enumerate(zip(request.seeds, formats, strict=True)):
            name = pattern.fill({**shared, "seed": seed, "image": image})
            suffix = "" if pattern.suffix else _SUFFIXES.get(format_, f".{format_}")
            paths.append(self.folder / f"{name}{suffix}")
        return paths

    def write(self, request: PreparedRequest, result: EncodedImages) -> list[Path]:
        """Write the images of a result and return their paths. Raises `ValueError` and `OSError`."""
        paths = self.paths(request, result.formats, {"worker": result.worker, "model": result.model})
        written = []
        for image, path in enumerate(paths):
            if self.existing is Existing.SKIP and path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(result, image, path, overwrite=self.existing is Existing.OVERWRITE)
            written.append(path)
        return written


def _write_whole(result: EncodedImages, image: int, path: Path, *, overwrite: bool) -> None:
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


def resolve_output(out: str | None, pattern: str | None, existing: Existing, *, several: bool) -> OutputFiles:
    """Return the output files for `--out` and `--pattern`; a missing output folder is created.

    `out` is a folder if it exists as one, with a pattern, for several prompts, or if it ends in a slash. Raises
    `ValueError` for an invalid path or name, and `OSError` if the folder cannot be created.
    """
    path = Path(out) if out else Path()
    is_folder = out is None or pattern is not None or out.endswith("/") or path.is_dir()
    if not is_folder and several:
        if path.suffix.lower() in _COMMON_SUFFIXES - {""}:
            raise ValueError(
                f"expected a folder for several prompts (--pattern sets the names), got the file {out!r}"
            )
        is_folder = True
    if is_folder:
        if path.exists() and not path.is_dir():
            raise ValueError(f"expected a folder, got the file {path}")
        output = OutputFiles(path, FileNamePattern(pattern or DEFAULT_PATTERN), existing)
        path.mkdir(parents=True, exist_ok=True)
    else:
        output = OutputFiles(
            path.parent, FileNamePattern(path.name.replace("{", "{{").replace("}", "}}")), existing
        )
        if not path.parent.is_dir():
            raise ValueError(f"the folder {path.parent} does not exist")
    if not os.access(output.folder, os.W_OK | os.X_OK):
        raise ValueError(f"the folder {output.folder} is not writable")
    if (suffix := output.pattern.suffix.lower()) not in _COMMON_SUFFIXES:
        _check_suffix(suffix)
    return output


def select_requests(output: OutputFiles, requests: Sequence[PreparedRequest]) -> list[PreparedRequest]:
    """Return the requests to run: with `Existing.SKIP`, those with a missing file.

    Raises `ValueError` if two images have the same path, and for an existing file with `Existing.REFUSE`. Paths
    that depend on fields of the result are checked when they are written.
    """
    counts: Counter[Path] = Counter()
    selected = []
    for request in requests:
        options: Mapping[str, Any] = request.options
        known = {"model": str(options["model"])} if options.get("model") else {}
        unknown = (output.pattern.fields & RESULT_FIELDS) - known.keys()
        formats = [str(options.get("output_format") or "png")] * len(request.seeds)
        paths = output.paths(request, formats, {name: name for name in unknown} | known)
        counts.update(paths)
        if unknown and output.existing is Existing.SKIP:
            raise ValueError(f"--skip-existing: the field {{{min(unknown)}}} is known only after generating")
        exist = [not unknown and _exists(path, output.existing) for path in paths]
        if output.existing is not Existing.SKIP or not all(exist):
            selected.append(request)
    path, times = max(counts.items(), key=lambda item: item[1])
    if times > 1:
        raise ValueError(f"{times} images would be written to {path}; add {{index}} or {{seed}} to the name")
    return selected


def _exists(path: Path, existing: Existing) -> bool:
    if len(path.name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"expected a file name of at most {MAX_NAME_BYTES} bytes, got {path.name[:40]}...")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    if not path.exists():
        return False
    if existing is Existing.REFUSE:
        raise ValueError(f"{path} exists; use --overwrite or --skip-existing")
    return True


def _check_suffix(suffix: str) -> None:
    from PIL import Image

    kind = Image.registered_extensions().get(suffix)
    if kind not in Image.SAVE:
        raise ValueError(
            f"unknown image format {suffix!r}; expected .png, .jpg, .webp or another format that Pillow writes"
        )
    try:
        # Some formats lack colour, some need a library that is not installed.
        Image.new("RGB", (16, 16)).save(io.BytesIO(), format=kind)
    except (OSError, ValueError) as error:
        raise ValueError(f"images cannot be written as {suffix!r} ({kind}): {error}") from error
