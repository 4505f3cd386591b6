"""Key files: generation, permissions, and errors for invalid files."""

import os

import pytest

from imagegen_protocol.keys import (
    KeyFileError,
    generate_keys,
    read_allowed_keys,
    read_curve_keys,
    read_key_pair,
    read_public_key,
)


def test_a_generated_pair_can_be_read(tmp_path):
    public, secret = generate_keys(tmp_path / "keys", "gpu-host")
    pair = read_key_pair(secret)
    assert (public.name, secret.name) == ("gpu-host.key", "gpu-host.key_secret")
    assert pair.public == read_public_key(public)
    assert len(pair.secret) == 40
    assert pair.secret.decode() not in repr(pair)


def test_the_secret_key_is_readable_by_its_owner_only(tmp_path):
    _, secret = generate_keys(tmp_path, "me")
    assert secret.stat().st_mode & 0o077 == 0


def test_a_key_is_never_overwritten(tmp_path):
    _, secret = generate_keys(tmp_path, "me")
    before = secret.read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        generate_keys(tmp_path, "me")
    assert secret.read_bytes() == before


def test_a_folder_of_keys_is_read_as_allow_list(tmp_path):
    for name in ("alice", "bob"):
        generate_keys(tmp_path, name)
    allowed = read_allowed_keys(tmp_path)
    assert sorted(allowed.names.values()) == ["alice", "bob"]
    assert read_public_key(tmp_path / "alice.key") in allowed.names
    assert not allowed.problems


def write(content):
    return lambda path: path.write_bytes(content)


BAD_FILES = [
    (write(b""), "No public key"),
    (write(b"no key at all"), "No public key"),
    (write(b'public-key = "short"'), "40 characters, not 5"),
    (write(b'public-key = "' + b"~" * 40 + b'"'), "b'~' is not allowed in a key"),
    (write(b"\xff\xfe" + 'public-key = "x"'.encode("utf-16-le")), "bad.key"),
    (write(b"x" * 65_537), "65537 bytes"),
    (lambda path: path.mkdir(), "not a regular file"),
    (os.mkfifo, "not a regular file"),
    (lambda path: path.symlink_to("nowhere"), "No such file"),
    (lambda path: path.symlink_to(path.name), "symbolic links"),
]


@pytest.mark.parametrize(("make", "words"), BAD_FILES)
def test_an_invalid_file_does_not_affect_others(tmp_path, make, words):
    for name in ("alice", "zoe"):
        generate_keys(tmp_path, name)
    make(tmp_path / "bad.key")
    allowed = read_allowed_keys(tmp_path)
    assert sorted(allowed.names.values()) == ["alice", "zoe"]
    (problem,) = allowed.problems
    assert "bad.key" in problem
    assert words in problem


def test_a_link_to_a_key_file_is_followed(tmp_path):
    generate_keys(tmp_path / "elsewhere", "alice")
    (tmp_path / "linked.key").symlink_to("elsewhere/alice.key")
    assert list(read_allowed_keys(tmp_path).names.values()) == ["linked"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't read the key file"),
        ("", "No public key"),
        ("public-key", "a line with a key has no = in it"),
        ('public-key = "' + "x" * 40 + '"\nsecret-key', "a line with a key has no = in it"),
        ('public-key = "short"', "40 characters, not 5"),
        ('public-key = "' + "x" * 40 + '"\nsecret-key = "y"', "40 characters, not 1"),
        ('public-key = "' + "x" * 40 + '"', "no secret key"),
    ],
)
def test_an_invalid_key_file_is_rejected_with_a_message(tmp_path, content, words):
    path = tmp_path / "bad.key_secret"
    if content is not None:
        path.write_text(content)
    with pytest.raises(KeyFileError, match=words):
        read_key_pair(path)


@pytest.mark.parametrize(("name", "words"), [("missing", "No such file"), ("file", "Not a directory")])
def test_an_allow_list_must_be_a_folder(tmp_path, name, words):
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match=words):
        read_allowed_keys(tmp_path / name)


def test_own_key_and_broker_key_go_together(tmp_path):
    public, secret = generate_keys(tmp_path, "me")
    assert read_curve_keys(None, None) is None
    keys = read_curve_keys(secret, public)
    assert keys is not None
    assert keys.own.public == keys.broker
    with pytest.raises(KeyFileError, match="go together"):
        read_curve_keys(secret, None)


def with_metadata(path, text):
    """Add a section to a key file, as the specification of ZPL allows."""
    path.write_text(f"metadata\n{text}\n{path.read_text()}")


@pytest.mark.parametrize(
    "text", ["    max_priority = 5", '    max_priority = "5"  # at most', "    other = 1\n    max_priority=5"]
)
def test_a_key_file_may_limit_the_priority_of_requests(tmp_path, text):
    for name in ("alice", "bob"):
        generate_keys(tmp_path, name)
    with_metadata(tmp_path / "alice.key", text)
    allowed = read_allowed_keys(tmp_path)
    assert allowed.max_priorities == {read_public_key(tmp_path / "alice.key"): 5}
    assert not allowed.problems


@pytest.mark.parametrize("value", ["", "high", "101", "-101", "1.5"])
def test_a_key_with_an_invalid_maximum_priority_is_not_allowed(tmp_path, value):
    generate_keys(tmp_path, "alice")
    with_metadata(tmp_path / "alice.key", f"    max_priority = {value}")
    allowed = read_allowed_keys(tmp_path)
    assert not allowed.names
    (problem,) = allowed.problems
    assert problem.endswith(f"alice.key: max_priority: expected an integer from -100 to 100, got {value!r}")
