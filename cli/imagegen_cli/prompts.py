"""Prompts from the command line and from files, validated before anything is sent."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from imagegen_client.requests import RequestOptions, build, with_frames
from imagegen_protocol import InvalidRequestError
from imagegen_protocol.limits import ID_BYTES, MAX_SEED

OPTIONS: tuple[str, ...] = tuple(RequestOptions.__annotations__)


@dataclass(frozen=True, slots=True)
class PromptEntry:
    """A prompt with options of its own; `where` is its source, for error messages."""

    prompt: str
    options: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A validated request."""

    index: int
    prompt: str
    options: RequestOptions
    where: str

    @property
    def seed(self) -> int:
        """Seed of the first image."""
        return cast(int, self.options.get("seed"))

    @property
    def seeds(self) -> list[int]:
        """Seed of each image."""
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.options.get("num_images", 1))]


def read_lines(text: str, name: str) -> Iterator[PromptEntry]:
    """Yield the prompts of a file, one per line.

    A line starting with `{` is a JSON object with `prompt` and options. Blank lines and lines starting with `#`
    are skipped. Raises `InvalidRequestError` naming the line.
    """
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line.startswith("{"):
            yield _read_object(line, f"{name}:{number}")
        elif line and not line.startswith("#"):
            yield PromptEntry(line, {}, f"{name}:{number}")


def _read_object(line: str, where: str) -> PromptEntry:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"{where}: expected a JSON object in a line starting with {{: {error}"
        ) from error
    known = ("prompt", *OPTIONS)
    if unknown := [name for name in fields if name not in known]:
        raise InvalidRequestError(f"{where}: unknown field {unknown[0]!r}; expected one of {', '.join(known)}")
    prompt = fields.pop("prompt", None)
    if not isinstance(prompt, str):
        raise InvalidRequestError(f"{where}: prompt: expected a string, got {prompt!r}")
    return PromptEntry(prompt, fields, where)


def prepare(entries: Iterable[PromptEntry], common: RequestOptions, first_seed: int) -> list[PreparedRequest]:
    """Return validated requests; options of a prompt override the `common` ones.

    Seeds increase by one per image, starting at `first_seed`; a prompt with its own seed uses none of them.
    Raises `InvalidRequestError` naming the source of the prompt.
    """
    requests: list[PreparedRequest] = []
    seed = first_seed
    common = with_frames(cast(RequestOptions, {key: each for key, each in common.items() if each is not None}))
    for index, entry in enumerate(entries):
        own = {name: value for name, value in entry.options.items() if value is not None}
        options = cast(RequestOptions, {**common, "seed": seed, **own})
        try:
            build(entry.prompt, options, request_id=bytes(ID_BYTES), seed=seed)
        except InvalidRequestError as error:
            raise InvalidRequestError(
                f"{entry.where}: {error.message}" if entry.where else error.message
            ) from error
        request = PreparedRequest(index, entry.prompt, options, entry.where)
        requests.append(request)
        if "seed" not in own:
            seed = (seed + len(request.seeds)) % (MAX_SEED + 1)
    return requests
