"""The limit on open files."""

import resource

import pytest

from imagegen_gateway.connection_limits import permitted_connections

INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "new", "permitted"),
    [
        (1024, 20_000, 1320, 1000),
        (1024, INFINITY, 1320, 1000),
        (4096, 20_000, 4096, 1000),
        (INFINITY, INFINITY, INFINITY, 1000),
        (256, 1024, 1024, 704),
        (100, 300, 300, 1),
    ],
)
def test_the_limit_is_raised_as_far_as_the_system_permits(monkeypatch, soft, hard, new, permitted):
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    assert permitted_connections(1000) == permitted
    assert limits[-1] == (new, hard)
