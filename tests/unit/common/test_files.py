"""Files that are written whole or not at all."""

import threading

import pytest

from imagegen_common.files import replacing


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "image.png"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".png"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_changes_nothing(tmp_path):
    path = tmp_path / "image.png"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_of_the_maximum_length_can_be_replaced(tmp_path):
    path = tmp_path / f"{'x' * 251}.png"
    with replacing(path) as temporary:
        temporary.touch()
    assert path.exists()


def test_two_threads_do_not_share_a_temporary_file(tmp_path):
    names = []

    def write():
        with replacing(tmp_path / "image.png") as temporary:
            temporary.touch()
            names.append(temporary.name)

    with replacing(tmp_path / "image.png") as temporary:
        temporary.touch()
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert temporary.name not in names
