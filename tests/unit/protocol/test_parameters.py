"""The declaration of the request parameters, and the documentation generated from it."""

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from imagegen_protocol.declaration import (
    Frame,
    ParameterInfo,
    image_paths,
    map_images,
    read_parameters,
    split_images,
)
from imagegen_protocol.parameters import HEADER_PARAMETERS, IMAGE_PARAMETERS, PARAMETERS, http_field
from imagegen_protocol.request import FIELDS
from tools import parameter_docs

ROOT = Path(__file__).parents[3]
PACKAGES = ("broker", "cli", "client", "common", "gateway", "gpu_worker", "protocol")


def info(**fields):
    return ParameterInfo(**{"label": "Label", "description": "Description.", "unset": None, **fields})


class Control(msgspec.Struct, kw_only=True):
    """A struct with its own image, as for a ControlNet."""

    name: Annotated[str, Meta(min_length=1), info()]
    image: Annotated[Frame, info()]
    mask: Annotated[Frame, info()] = None
    scale: Annotated[float, Meta(gt=0, le=2), info()] = 1.0


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request with each kind of parameter."""

    image: Annotated[Frame, info()] = None
    images: Annotated[list[Frame], Meta(max_length=4), info()] | None = None
    controls: Annotated[list[Control], Meta(max_length=2), info()] | None = None
    steps: Annotated[int, Meta(ge=1, le=9), info(default=3)] | None = None
    size: Annotated[Literal["small", "big"], info(option="--extent", http_name="extent")] | None = None
    tiled: Annotated[bool, info()] = False
    other: dict[str, int] | None = None


def test_types_ranges_and_defaults_are_read():
    found = read_parameters(Request)
    assert {name: each.kind for name, each in found.items()} == {
        "image": "image", "images": "images", "controls": "objects", "steps": "integer", "size": "string",
        "tiled": "boolean",
    }  # fmt: skip
    assert found["steps"].json_schema() == {"minimum": 1, "maximum": 9}
    assert (found["steps"].default, found["steps"].default_words, found["tiled"].default) == (3, "3", False)
    assert found["size"].json_schema() == {"enum": ["small", "big"]}
    assert (found["size"].option, found["size"].http_name) == ("--extent", "extent")
    name, image, _, scale = found["controls"].fields
    assert (name.required, image.required, scale.required) == (True, True, False)
    assert scale.json_schema() == {"exclusive_minimum": 0, "maximum": 2}


def test_a_type_without_a_kind_is_rejected_with_its_field():
    class Wrong(msgspec.Struct):
        sides: Annotated[set[int], info()]

    with pytest.raises(TypeError, match=r"Wrong\.sides: expected a type with a parameter kind"):
        read_parameters(Wrong)


IMAGES = {
    "image": "a",
    "images": ["b", "c"],
    "controls": [{"name": "n", "image": "d"}, {"name": "m", "image": "e"}],
}


def test_images_in_lists_and_structs_become_frames_with_paths():
    parameters = read_parameters(Request)
    body, images = split_images({**IMAGES, "steps": 2}, parameters)
    assert images == {
        "image": "a", "images[0]": "b", "images[1]": "c", "controls[0].image": "d", "controls[1].image": "e",
    }  # fmt: skip
    request = msgspec.convert(body, Request)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(request))
    assert sent["images"] == [None, None]
    assert "image" not in sent
    assert msgspec.convert(sent, Request) == request
    paths = dict(image_paths(request, parameters))
    assert set(images) <= set(paths)
    assert [path for path, required in paths.items() if required] == [path for path in images if path != "image"]
    assert paths["controls[0].mask"] is False


def test_images_are_replaced_in_place_and_wrong_kinds_are_kept():
    parameters = read_parameters(Request)
    read = map_images(IMAGES, parameters, lambda path, image: (path, image))
    assert read["controls"][1] == {"name": "m", "image": ("controls[1].image", "e")}
    wrong = {"images": "one.png", "controls": [3], "steps": 2, "unknown": 1}
    assert split_images(wrong, parameters) == (wrong, {})


def test_every_field_except_inputs_is_declared():
    assert set(FIELDS) - set(PARAMETERS) == {"inputs"}
    assert set(HEADER_PARAMETERS) == {"model", "priority", "timeout_seconds"}
    assert list(IMAGE_PARAMETERS) == ["image", "images", "mask_image"]


@pytest.mark.parametrize("parameter", PARAMETERS.values(), ids=PARAMETERS)
def test_descriptions_are_sentences(parameter):
    for each in (parameter, *parameter.fields):
        assert re.fullmatch(r"[A-Z].*\.", each.info.description)
        assert each.info.label


def test_http_names_are_those_of_openai():
    assert {name: each.http_name for name, each in PARAMETERS.items() if each.http_name != name} == {
        "num_images": "n", "quality": "output_compression", "mask_image": "mask", "width": "size",
        "height": "size",
    }  # fmt: skip
    assert [http_field(name) for name in ("inputs", "quality", "seed")] == ["image", "output_compression", "seed"]


@pytest.mark.parametrize("page", parameter_docs.PAGES)
def test_the_tables_in_the_docs_are_up_to_date(page):
    text = (parameter_docs.DOCS / page).read_text()
    assert "<!-- parameters: " in text
    assert parameter_docs.render(text) == text, "run: python -m tools.parameter_docs"


def test_a_parameter_is_named_only_where_it_is_declared_and_used():
    sources = [
        path for package in PACKAGES for kind in ("py", "js") for path in ROOT.glob(f"{package}/**/*.{kind}")
    ]
    assert len(sources) > 200
    naming = [path.relative_to(ROOT) for path in sources if re.search(r"\bstrength\b", path.read_text())]
    assert len(naming) <= 7, naming
