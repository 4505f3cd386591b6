"""Random seeds: JSON readers that store numbers as doubles must read them exactly."""

import secrets

import pytest

from imagegen_protocol.limits import MAX_IMAGES_PER_REQUEST, MAX_RANDOM_SEED
from imagegen_protocol.request import GenerationRequest
from imagegen_protocol.seeds import random_seed


@pytest.mark.parametrize("chosen", ["smallest", "largest", "random"])
def test_the_seeds_of_all_images_are_exact_as_doubles(monkeypatch, chosen):
    if chosen != "random":
        monkeypatch.setattr(secrets, "randbelow", lambda limit: 0 if chosen == "smallest" else limit - 1)
    request = GenerationRequest(prompt="x", seed=random_seed(), num_images=MAX_IMAGES_PER_REQUEST)
    assert 0 <= request.seed <= MAX_RANDOM_SEED
    assert [int(float(seed)) for seed in request.seeds()] == request.seeds()
    assert max(request.seeds()) < 2**53


def test_seeds_of_a_billion_images_after_a_random_one_are_exact(monkeypatch):
    monkeypatch.setattr(secrets, "randbelow", lambda limit: limit - 1)
    assert random_seed() + 10**9 < 2**53
