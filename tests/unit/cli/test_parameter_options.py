"""Command-line options of the declared parameters."""

from typing import Annotated

import click
import msgspec
import pytest
from click.testing import CliRunner
from msgspec import Meta

from imagegen_cli.commands.generate import command as generate
from imagegen_cli.commands.parameter_options import parameter_option, parameter_options
from imagegen_protocol.declaration import ParameterInfo, read_parameters
from imagegen_protocol.parameters import PARAMETERS


def test_generate_has_an_option_for_every_parameter():
    options = {option.name: option for option in generate.params}
    for name, parameter in PARAMETERS.items():
        if name not in ("prompt", "images"):
            assert parameter.option in options[name].opts


def test_one_image_is_the_start_and_several_are_references(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(b"")

    @click.command()
    @parameter_options("image", "images")
    def command(image, images):
        click.echo(f"{image and image.name} {images and [each.name for each in images]}")

    for count, output in enumerate(("None None", "a.png None", "None ['a.png', 'b.png']")):
        given = [f"--image={file}" for file in files[:count]]
        assert CliRunner().invoke(command, given).output == f"{output}\n"


class Request(msgspec.Struct):
    """Parameters that requests do not have yet."""

    rescale: (
        Annotated[
            float,
            Meta(ge=0, le=1),
            ParameterInfo(label="Rescale", description="How much to rescale.", unit="parts"),
        ]
        | None
    ) = None
    tiled: Annotated[bool, ParameterInfo(label="Tiled", description="Whether to tile.", default=True)] | None = (
        None
    )


def run(parameter, *arguments):
    @click.command()
    @parameter_option(parameter)
    def command(**values):
        click.echo(repr(values))

    return CliRunner().invoke(command, arguments)


def test_a_new_parameter_has_its_option_range_and_help():
    rescale, tiled = read_parameters(Request).values()
    assert run(rescale).output == "{'rescale': None}\n"
    assert run(rescale, "--rescale", "0.5").output == "{'rescale': 0.5}\n"
    assert "0 to 1" in run(rescale, "--rescale", "2").output
    said = " ".join(run(rescale, "--help").output.split())
    assert "How much to rescale. In parts. [default: the model's] [0 to 1]" in said
    assert run(tiled, "--tiled", "false").output == "{'tiled': False}\n"


def test_a_kind_without_an_option_is_a_mistake_of_the_declaration():
    class Strange(msgspec.Struct):
        pairs: Annotated[list[Request], ParameterInfo(label="Pairs", description="Pairs.")] | None = None

    with pytest.raises(TypeError, match="pairs: there is no option for a parameter of the kind objects"):
        run(read_parameters(Strange)["pairs"])
