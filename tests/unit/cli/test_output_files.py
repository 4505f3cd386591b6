"""Output files: patterns, checks before generating, atomic writes."""

import os
from pathlib import Path

import pytest

from imagegen_cli.file_names import FileNamePattern, sanitize, slug
from imagegen_cli.output_files import Existing, OutputFiles, resolve_output, select_requests
from imagegen_cli.prompts import PromptEntry, prepare


class EncodedImages:
    """A result whose files contain their index."""

    worker, model = "gpu/0", "org/model-1.5"

    def __init__(self, images=1, format="png", fail=False):
        self.formats = [format] * images
        self.fail = fail

    def save_image(self, index, path):
        Path(path).write_text(f"image {index}")
        if self.fail:
            raise OSError(28, "No space left on device")


def requests(*prompts, seed=5, **common):
    return prepare([PromptEntry(prompt, {}, "") for prompt in prompts], common, seed)


def names(targets, request, result=None):
    result = result or EncodedImages(len(request.seeds))
    paths = targets.paths(request, result.formats, {"worker": result.worker, "model": result.model})
    return [path.relative_to(targets.folder).as_posix() for path in paths]


# ---- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "images", "expected"),
    [
        ("{index:03}-{prompt}.webp", 1, ["001-second-prompt.webp"]),
        ("{index}", 2, ["1-0.png", "1-1.png"]),
        ("{seed}", 2, ["7.png", "8.png"]),
        ("{image:02}/{index}", 2, ["00/1.png", "01/1.png"]),
        ("{model}-{worker}", 1, ["org-model-1.5-gpu-0.png"]),
        ("{{{index}}}.jpg", 1, ["{1}.jpg"]),
    ],
)
def test_patterns_are_filled_in(pattern, images, expected):
    request = requests("first", "Second, prompt!", num_images=images, seed=7 - images)[1]
    assert names(OutputFiles(Path("x"), FileNamePattern(pattern)), request) == expected


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{name}.png", r"unknown field \{name\}; expected one of \{index\}, \{seed\}, \{prompt\}, \{model\}"),
        ("{}.png", r"unknown field \{\}"),
        ("{seed.real}", r"unknown field \{seed.real\}"),
        ("{prompt!r}", r"unknown field \{prompt!r\}"),
        ("{index:{seed}}", r"unknown field \{index\}"),
        ("{index", "write a literal brace twice"),
        ("{index:q}", "Unknown format code 'q'"),
        ("{prompt:d}", "Unknown format code 'd'"),
        ("/tmp/{index}", "leads out of the output folder"),
        ("../{index}", "leads out of the output folder"),
        ("{index}/", "expected a file name"),
        ("", "expected a file name"),
    ],
)
def test_invalid_patterns_are_rejected(pattern, words):
    with pytest.raises(ValueError, match=words):
        FileNamePattern(pattern)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red Circle, on blue!", "a-red-circle-on-blue"),
        ("Café über/..\\x", "cafe-uber-x"),
        ("日本", "prompt"),
        ("", "prompt"),
        ("word " * 50, "word-" * 11 + "word"),
        ("x" * 100, "x" * 60),
    ],
)
def test_a_prompt_as_part_of_a_name(prompt, expected):
    assert slug(prompt) == expected


def test_a_model_as_part_of_a_name():
    assert [sanitize(name) for name in ("org/sd-1.5", "../..", "a b")] == ["org-sd-1.5", "unnamed", "a-b"]


# ---- where to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.png", "a.PNG", "a.jpg", "a.jpeg", "a.webp", "a.bmp", "a.tiff", "a.gif", "{b}.png"]
)
def test_an_output_file_is_not_created_early(tmp_path, name):
    targets = resolve_output(str(tmp_path / name), None, Existing.REFUSE, several=False)
    assert names(targets, *select_requests(targets, requests("x"))) == [name]
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_suffix_gets_the_suffix_of_its_format(tmp_path):
    targets = resolve_output(str(tmp_path / "a"), None, Existing.REFUSE, several=False)
    assert names(targets, *requests("x"), EncodedImages(format="webp")) == ["a.webp"]
    assert names(targets, *requests("x"), EncodedImages(format="jpeg")) == ["a.jpg"]


@pytest.mark.parametrize(
    ("name", "pattern", "several"), [("new/folder/", None, False), ("new", None, True), ("new", "{index}", False)]
)
def test_a_missing_folder_is_created(tmp_path, name, pattern, several):
    targets = resolve_output(f"{tmp_path}/{name}", pattern, Existing.REFUSE, several=several)
    assert targets.folder == tmp_path / name
    assert targets.folder.is_dir()


def test_an_existing_folder_is_used_for_a_single_prompt(tmp_path):
    targets = resolve_output(str(tmp_path), None, Existing.REFUSE, several=False)
    assert names(targets, *requests("x")) == ["imagegen-5.png"]


@pytest.mark.parametrize(
    ("name", "pattern", "several", "words"),
    [
        ("a.xyz", None, False, "unknown image format"),
        ("a.psd", None, False, "unknown image format"),
        ("a.xbm", None, False, "cannot be written as"),
        ("", "{index}.xyz", False, "unknown image format"),
        ("missing/a.png", None, False, "the folder .* does not exist"),
        ("file/a.png", None, False, "the folder .* does not exist"),
        ("a.png", None, True, "expected a folder for several prompts"),
        ("file", None, True, "expected a folder"),
        ("file", "{index}", False, "expected a folder"),
    ],
)
def test_invalid_output_paths_are_rejected(tmp_path, name, pattern, several, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=words):
        resolve_output(f"{tmp_path}/{name}", pattern, Existing.REFUSE, several=several)


def test_a_folder_without_permission_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    for out in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(ValueError, match="is not writable"):
            resolve_output(str(out), None, Existing.REFUSE, several=False)


# ---- what exists; use ---------------------------------------------------------------------------------


def test_existing_files_are_an_error_skipped_or_overwritten(tmp_path):
    (tmp_path / "1.png").write_text("old")
    three = requests("a", "b", "c")

    def left(existing):
        return [
            request.index
            for request in select_requests(OutputFiles(tmp_path, FileNamePattern("{index}.png"), existing), three)
        ]

    with pytest.raises(ValueError, match=r"1\.png exists; use --overwrite or --skip-existing"):
        left(Existing.REFUSE)
    assert left(Existing.SKIP) == [0, 2]
    assert left(Existing.OVERWRITE) == [0, 1, 2]


def test_all_images_of_a_request_are_checked(tmp_path):
    (tmp_path / "0-1.png").write_text("old")
    request = requests("a", num_images=2)
    with pytest.raises(ValueError, match="exists; use"):
        select_requests(OutputFiles(tmp_path, FileNamePattern("{index}")), request)
    targets = OutputFiles(tmp_path, FileNamePattern("{index}"), Existing.SKIP)
    assert select_requests(targets, request) == request
    assert targets.write(request[0], EncodedImages(2)) == [tmp_path / "0-0.png"]
    assert (tmp_path / "0-1.png").read_text() == "old"


def test_two_images_with_one_name_are_an_error(tmp_path):
    for pattern in ("same.png", "{worker}", "{prompt}-{image}"):
        with pytest.raises(ValueError, match="2 images would be written to"):
            select_requests(OutputFiles(tmp_path, FileNamePattern(pattern)), requests("a", "A"))


def test_a_name_with_result_fields_is_checked_when_written(tmp_path):
    targets = OutputFiles(tmp_path, FileNamePattern("{index}-{worker}"))
    (request,) = select_requests(targets, requests("a"))
    (tmp_path / "0-gpu-0.png").write_text("old")
    with pytest.raises(FileExistsError):
        targets.write(request, EncodedImages())
    assert (tmp_path / "0-gpu-0.png").read_text() == "old"
    with pytest.raises(ValueError, match=r"\{worker\} is known only after generating"):
        select_requests(OutputFiles(tmp_path, targets.pattern, Existing.SKIP), [request])
    named = OutputFiles(tmp_path, FileNamePattern("{model}"), Existing.SKIP)
    assert select_requests(named, requests("a", model="m")), "the model that is asked for is known"


@pytest.mark.parametrize(("name", "words"), [("x" * 256, "at most 255 bytes"), ("folder", "is a folder")])
def test_impossible_file_names_are_rejected(tmp_path, name, words):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=words):
        select_requests(OutputFiles(tmp_path, FileNamePattern(f"{name}.png")), requests("a"))


# ---- written whole -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [Existing.REFUSE, Existing.OVERWRITE])
def test_a_failing_write_keeps_the_existing_file(tmp_path, existing):
    targets = OutputFiles(tmp_path, FileNamePattern("a.png"), existing)
    before = {}
    if existing is Existing.OVERWRITE:
        (tmp_path / "a.png").write_text("old")
        before = {"a.png": "old"}
    with pytest.raises(OSError, match="No space left"):
        targets.write(requests("x")[0], EncodedImages(fail=True))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_folders_of_the_pattern_are_created(tmp_path):
    targets = OutputFiles(tmp_path, FileNamePattern("{model}/{image}.png"))
    written = targets.write(requests("x", num_images=2)[0], EncodedImages(2))
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        f"org-model-1.5{os.sep}{image}.png" for image in (0, 1)
    ]
    assert [path.read_text() for path in written] == ["image 0", "image 1"]
