"""Sizes of images in the terminal, and where they are refused."""

import pytest
from click.testing import CliRunner

from imagegen_cli.commands.generate import command
from imagegen_cli.inline_images import MAX_ROWS, fit


@pytest.mark.parametrize(
    ("image", "terminal", "expected"),
    [
        ((512, 512), (120, 60), (40, 20)),
        ((512, 512), (120, 14), (20, 10)),
        ((512, 512), (30, 60), (30, 15)),
        ((1024, 512), (120, 60), (80, 20)),
        ((512, 1024), (120, 60), (20, 20)),
        ((8192, 8), (80, 24), (80, 1)),
        ((8, 8192), (80, 24), (1, 20)),
        ((512, 512), (1, 1), (1, 1)),
    ],
)
def test_images_fit_into_the_terminal_and_keep_their_aspect_ratio(image, terminal, expected):
    assert fit(image, terminal) == expected
    assert expected[1] <= MAX_ROWS


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--show", "--json"], "--show and --json exclude each other"), (["--show"], "--show needs a terminal")],
)
def test_show_is_refused_where_nothing_can_be_shown(words, message):
    result = CliRunner().invoke(command, ["a circle", *words])
    assert result.exit_code == 2
    assert message in result.output
