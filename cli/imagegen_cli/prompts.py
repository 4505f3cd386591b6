"""Prompts and what belongs to them, from a command line and from files, checked before anything is asked."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from imagegen_client.requests import RequestOptions, build, with_frames
from imagegen_protocol import InvalidRequestError
from imagegen_protocol.limits import ID_BYTES, MAX_SEED

OPTIONS: tuple[str, ...] = tuple(RequestOptions.__annotations__)


@dataclass(frozen=True, slots=True)
class Given:
    """A prompt as somebody gave it; `where` says where, for messages about it."""

    prompt: str
    options: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class Order:
    """A checked request that is to be sent."""

    index: int
    prompt: str
    options: RequestOptions
    where: str

    @property
    def seed(self) -> int:
        """The seed of the first image."""
        return cast(int, self.options.get("seed"))

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.options.get("num_images", 1))]


def read_lines(text: str, name: str) -> Iterator[Given]:
    """Yield the prompts of a file, one a line.

    A line that begins with `{` is a JSON object with `prompt` and options. Blank lines and those that begin with
    `#` are skipped. Raises `InvalidRequestError` naming the line.
    """
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line.startswith("{"):
            yield _read_object(line, f"{name}:{number}")
        elif line and not line.startswith("#"):
            yield Given(line, {}, f"{name}:{number}")


def _read_object(line: str, where: str) -> Given:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{where}: a line that begins with {{ must be a JSON object: {error}") from error
    known = ("prompt", *OPTIONS)
    if unknown := [name for name in fields if name not in known]:
        raise InvalidRequestError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(known)}")
    prompt = fields.pop("prompt", None)
    if not isinstance(prompt, str):
        raise InvalidRequestError(f"{where}: prompt: expected a text, got {prompt!r}")
    return Given(prompt, fields, where)


def number(given: Iterable[Given], common: RequestOptions, first_seed: int) -> list[Order]:
    """Return checked requests; what a prompt says itself wins over the `common` options.

    The seeds count on from `first_seed`, image after image and prompt after prompt; a prompt with a seed of its
    own takes none of them. Raises `InvalidRequestError`, which says where the prompt stands.
    """
    orders: list[Order] = []
    seed = first_seed
    common = with_frames(cast(RequestOptions, {key: each for key, each in common.items() if each is not None}))
    for index, one in enumerate(given):
        own = {name: value for name, value in one.options.items() if value is not None}
        options = cast(RequestOptions, {**common, "seed": seed, **own})
        try:
            build(one.prompt, options, request_id=bytes(ID_BYTES), seed=seed)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{one.where}: {error.message}" if one.where else error.message) from error
        order = Order(index, one.prompt, options, one.where)
        orders.append(order)
        if "seed" not in own:
            seed = (seed + len(order.seeds)) % (MAX_SEED + 1)
    return orders
