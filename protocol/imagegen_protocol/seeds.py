"""Random seeds."""

import secrets

from imagegen_protocol.limits import MAX_RANDOM_SEED


def random_seed() -> int:
    """Return a random seed of 0 … `MAX_RANDOM_SEED`."""
    return secrets.randbelow(MAX_RANDOM_SEED + 1)
