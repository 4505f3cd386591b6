"""Lock files of the images: complete, with hashes, at the versions of `constraints.txt`."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.deploy.commands import DEPLOY, ROOT
from tools.lock import EXTRAS, LOCKS

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
ONLY_ON_A_GPU = re.compile(r"(cuda|nvidia)-[\w-]+|setuptools|triton")
"""Packages that only the CUDA build of torch requires: no environment of the tests has them."""


def packages(name):
    """Return the versions and the hashes of a lock file, by package."""
    found = {}
    for block in re.split(r"^(?=\w)", (LOCKS / f"{name}.txt").read_text(), flags=re.MULTILINE)[1:]:
        package, version = re.match(r"([\w.-]+)==(\S+) ", block).groups()
        found[package] = version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)
    return found


@pytest.fixture(params=[*EXTRAS, "build"])
def lock(request):
    return request.param


def test_every_package_has_hashes(lock):
    assert all(hashes for _, hashes in packages(lock).values())


def test_versions_are_those_of_the_constraints(lock):
    for package, (version, _) in packages(lock).items():
        if package in PINS or not ONLY_ON_A_GPU.fullmatch(package):
            assert version == PINS.get(package), f"{package}: run `make lock`"


def test_all_dependencies_are_locked(lock):
    project = PYPROJECT["project"]
    needed = PYPROJECT["build-system"]["requires"]
    if lock != "build":
        needed = [*project["dependencies"], *project["optional-dependencies"][EXTRAS[lock]]]
    locked = packages(lock)
    for requirement in map(Requirement, needed):
        version, _ = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: run `make lock`"


def test_a_lock_names_no_package_index(lock):
    assert "://" not in (LOCKS / f"{lock}.txt").read_text()


@pytest.mark.parametrize("role", ["broker", "client", "gateway", "worker"])
def test_images_install_nothing_without_a_hash(role):
    text = (DEPLOY / f"docker/Dockerfile.{role}").read_text()
    commands = re.findall(r"pip (?:install|wheel) [^&\n]*(?:\\\n[^&\n]*)*", text)
    assert len(commands) == 4
    assert all("--require-hashes" in each or ("--no-index" in each and "--no-deps" in each) for each in commands)
    assert all("--only-binary :all:" in each for each in commands if "--require-hashes" in each)
