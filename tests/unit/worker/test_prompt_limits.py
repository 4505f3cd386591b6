"""Warnings about texts that are longer than the text encoders of a pipeline take."""

from dataclasses import replace

import pytest

from imagegen_worker.backends.diffusers.prompt_limits import PromptLimits
from tests.families import clip_tokenizer, t5_tokenizer
from tests.unit.worker.bench import resolved

# One token for each letter, and one for the mark at the start and at the end.
LONG = "a" * 74 + " END of it"


class Clip:
    """A pipeline with one or several text encoders of CLIP's length."""

    def __init__(self, *tokenizers):
        self.components = {f"tokenizer_{index}": part for index, part in enumerate(tokenizers)} | {"vae": object()}

    def __call__(self, prompt):
        """Generate nothing."""


class WithT5(Clip):
    """A pipeline whose calls state the maximum of its second text encoder."""

    def __call__(self, prompt, max_sequence_length=100):
        """Generate nothing."""


def warnings(pipeline, prompt, **fields):
    request = replace(resolved(prompt=prompt), **fields)
    return PromptLimits(pipeline).warnings(request)


@pytest.mark.parametrize("tokenizers", [1, 2])
def test_the_ignored_end_of_a_prompt_is_named(tokenizers):
    pipeline = Clip(*(clip_tokenizer() for _ in range(tokenizers)))
    assert warnings(pipeline, "a" * 75) == ()
    (warning,) = warnings(pipeline, LONG)
    assert warning.startswith("prompt: the text encoder takes 77 tokens, got 83; ignored: ")
    assert warning.endswith("ND of it'")


def test_the_negative_prompt_is_checked_too():
    (warning,) = warnings(Clip(clip_tokenizer()), "short", negative_prompt=LONG)
    assert warning.startswith("negative_prompt: the text encoder takes 77 tokens, got 83")


def test_a_long_ignored_text_is_shortened():
    (warning,) = warnings(Clip(clip_tokenizer()), "a" * 75 + "b" * 9000)
    assert len(warning) < 200


def test_an_encoder_that_takes_the_whole_prompt_is_enough():
    pipeline = WithT5(clip_tokenizer(), t5_tokenizer())
    assert warnings(pipeline, "a" * 90) == ()
    (warning,) = warnings(pipeline, "a" * 200)
    assert warning.startswith("prompt: the text encoder takes 100 tokens, got 20")
    assert warnings(pipeline, "a" * 200, extra={"max_sequence_length": 300}) == ()


def test_a_pipeline_without_tokenizers_has_no_warnings():
    assert warnings(Clip(), LONG) == ()
