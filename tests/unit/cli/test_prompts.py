"""Prompts from files: lines, JSON objects, seeds."""

import pytest

from imagegen_cli.prompts import PromptEntry, prepare, read_lines
from imagegen_protocol import InvalidRequestError


def read(text):
    return [(one.prompt, dict(one.options), one.where) for one in read_lines(text, "p.txt")]


def test_a_line_is_a_prompt_or_a_json_object():
    text = '# no\n\n  a red circle \r\n{"prompt": "b", "width": 64, "seed": null}\n   \na # b'
    assert read(text) == [
        ("a red circle", {}, "p.txt:3"),
        ("b", {"width": 64, "seed": None}, "p.txt:4"),
        ("a # b", {}, "p.txt:6"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"', "p.txt:2: expected a JSON object in a line starting with {: Expecting"),
        ("{curly}", "p.txt:2: expected a JSON object in a line starting with {"),
        ('{"prompt": "a"} {}', "p.txt:2: expected a JSON object in a line starting with {: Extra data"),
        (
            '{"prompt": "a", "widht": 64}',
            "p.txt:2: unknown field 'widht'; expected one of prompt, seed, negative_prompt",
        ),
        ('{"width": 64}', "p.txt:2: prompt: expected a string, got None"),
        ('{"prompt": 5}', "p.txt:2: prompt: expected a string, got 5"),
        ('{"prompt": "a", "width": "wide"}', "p.txt:2: width: expected `int | null`, got `str`"),
        ('{"prompt": "a", "width": 1}', "p.txt:2: width: expected `int` >= 8, got 1"),
        ('{"prompt": "a", "num_images": 1.5}', "p.txt:2: num_images: expected `int`"),
        ('{"prompt": "a", "priority": 101}', "p.txt:2: priority: expected `int` <= 100, got 101"),
        ('{"prompt": "a", "loras": [{"name": "../x"}]}', "p.txt:2: loras: expected `str` matching"),
        ('{"prompt": "\\ud800"}', "p.txt:2: prompt: expected text that can be encoded as UTF-8"),
        ('{"prompt": "a", "model": "\\ud800"}', "p.txt:2: model: expected text that can be encoded as UTF-8"),
        ("x" * 1_000_000, "p.txt:2: prompt: expected `str` of length <= 10000, got 'xxx"),
    ],
)
def test_an_invalid_line_is_named_in_the_error(line, words):
    with pytest.raises(InvalidRequestError) as caught:
        prepare(read_lines(f"good\n{line}", "p.txt"), {}, 0)
    assert str(caught.value).startswith(words)
    assert len(str(caught.value)) < 500


def numbered(*given, first=10, **common):
    return prepare([PromptEntry(prompt, options, "") for prompt, options in given], common, first)


def test_seeds_increase_over_images_and_prompts():
    requests = numbered(("a", {}), ("b", {"seed": 99}), ("c", {"num_images": 1}), ("d", {}), num_images=2)
    assert [request.seeds for request in requests] == [[10, 11], [99, 100], [12], [13, 14]]
    assert [request.index for request in requests] == [0, 1, 2, 3]
    assert [request.seeds for request in numbered(("a", {}), ("b", {}), first=2**63 - 1)] == [[2**63 - 1], [0]]


def test_options_of_a_prompt_override_common_ones_except_null():
    (request,) = numbered(("a", {"width": 64, "height": None}), width=128, height=256, model=None)
    assert (request.options.get("width"), request.options.get("height")) == (64, 256)


def test_errors_of_a_single_prompt_name_no_source():
    with pytest.raises(InvalidRequestError, match=r"^width: "):
        numbered(("a", {}), width=1)
