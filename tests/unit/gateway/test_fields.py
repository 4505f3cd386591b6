"""HTTP fields derived from the parameter declaration."""

from typing import Annotated

import msgspec
import pytest
from fastapi import UploadFile
from msgspec import Meta
from pydantic import ValidationError

from imagegen_gateway.schemas.fields import body_fields, form_field, form_fields, image_fields, make_body
from imagegen_gateway.schemas.requests import EditBody, GenerateBody, JobBody, options
from imagegen_protocol.declaration import Frame, ParameterInfo, read_parameters
from imagegen_protocol.parameters import PARAMETERS


class Tile(msgspec.Struct):
    """An item of a list."""

    name: Annotated[str, ParameterInfo(label="Name", description="A name.", unset=None)]
    size: Annotated[int, Meta(ge=1), ParameterInfo(label="Size", description="A size.")] = 1


class Request(msgspec.Struct):
    """Parameters that requests do not have yet."""

    rescale: (
        Annotated[
            float,
            Meta(ge=0, le=1),
            ParameterInfo(
                label="Rescale",
                description="How much to rescale.",
                http_name="re",
                http_note="Be careful.",
                group="more",
            ),
        ]
        | None
    ) = None
    tiles: Annotated[list[Tile], Meta(max_length=2), ParameterInfo(label="Tiles", description="Tiles.")] | None = (
        None
    )
    sketch: Annotated[Frame, ParameterInfo(label="Sketch", description="A sketch.")] = None
    hidden: Annotated[int, ParameterInfo(label="Hidden", description="Hidden.", in_http=False)] | None = None


NEW = read_parameters(Request)


def test_a_new_parameter_becomes_a_validated_field():
    body = make_body("Body", body_fields(NEW))
    assert set(body.model_fields) == {"re", "tiles"}
    assert body(re=1).re == 1.0
    assert body(tiles=[{"name": "a"}]).tiles[0].name == "a"
    for wrong in (
        {"re": 1.5},
        {"re": "1"},
        {"tiles": [{}]},
        {"tiles": [{"name": "a", "size": 0}]},
        {"rescale": 1},
    ):
        with pytest.raises(ValidationError):
            body(**wrong)
    schema = body.model_json_schema()["properties"]["re"]
    assert schema["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    assert schema["description"] == "How much to rescale. Be careful. Default: the model's."


def test_forms_have_json_and_files_and_bodies_have_base64():
    form = make_body("Form", form_fields(NEW))
    assert form.model_fields["sketch"].annotation == UploadFile | None
    assert form(tiles=['[{"name": "a"}]']).tiles[0].name == "a"
    with pytest.raises(ValidationError, match="expected JSON such as"):
        form(tiles=["a"])
    assert make_body("Job", image_fields(NEW))(sketch="aGk=").sketch == "aGk="


def test_the_description_of_a_form_field():
    assert form_field(NEW["rescale"]) == {
        "name": "re", "label": "Rescale", "kind": "number", "group": "more", "listed": True,
        "minimum": 0, "maximum": 1,
        "description": "How much to rescale. Be careful. Default: the model's.", "choices_by_model": False,
    }  # fmt: skip
    assert [field["name"] for field in form_field(NEW["tiles"])["fields"]] == ["name", "size"]


@pytest.mark.parametrize("body", [GenerateBody, EditBody, JobBody])
def test_every_http_parameter_is_a_field_of_each_body(body):
    names = {each.http_name for each in PARAMETERS.values() if each.info.in_http and not each.has_images}
    assert names <= set(body.model_fields)
    assert ({"image", "mask"} <= set(body.model_fields)) == (body is not GenerateBody)


def test_a_body_is_converted_to_client_options():
    values = {
        "prompt": "x", "model": "m", "n": 2, "size": "64x32", "output_format": "webp", "output_compression": 50,
        "seed": 3, "num_inference_steps": 4, "guidance_scale": 2.5, "negative_prompt": "y", "scheduler": "S",
        "strength": 0.5, "loras": [{"name": "a"}, {"name": "b", "scale": 0.5}], "priority": -1,
        "timeout_seconds": 9.5, "quality": "hd",
    }  # fmt: skip
    assert options(GenerateBody(**values)) == {
        "model": "m", "num_images": 2, "width": 64, "height": 32, "output_format": "webp", "quality": 50,
        "seed": 3, "num_inference_steps": 4, "guidance_scale": 2.5, "negative_prompt": "y", "scheduler": "S",
        "strength": 0.5, "loras": [{"name": "a"}, {"name": "b", "scale": 0.5}], "priority": -1,
        "timeout_seconds": 9.5,
    }  # fmt: skip
