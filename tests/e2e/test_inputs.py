"""Input images, masks, schedulers and output formats, through the installed commands."""

import json
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageDraw

from imagegen_client import Client, GenerationResult, InvalidRequestError
from tests.e2e.conftest import DEFAULT_ARITHMETIC, SIMULATED, command
from tests.equality import same_image
from tests.pictures import huge_png
from tools.fleet import Fleet

SHAPES = ("--device", "cpu", "--torch-threads", "1", "--max-batch-size", "2")
ENGINES = {"simulated": SIMULATED, "continuous": SHAPES, "static": (*SHAPES, "--batching", "static")}
PROMPT = "a red circle on a blue background"


@pytest.fixture
def images(tmp_path):
    """A folder with an input image and a mask of 64 x 64 pixels, and larger ones."""
    for name, side in (("", 64), ("large-", 200)):
        image = Image.new("RGB", (side, side), "yellow")
        ImageDraw.Draw(image).ellipse((side // 4, side // 4, 3 * side // 4, 3 * side // 4), fill="green")
        image.save(tmp_path / f"{name}image.png")
        mask = Image.new("L", (side, side), 0)
        mask.paste(255, (side // 2, 0, side, side))
        mask.save(tmp_path / f"{name}mask.png")
    return tmp_path


def needs_a_model(engine):
    if engine == "simulated":
        pytest.skip("the simulated backend has no model")


def generate(fleet, folder, *arguments, check=True):
    brief = ("--seed", "1", "--broker", fleet.frontend)
    return command("imagegen", "generate", PROMPT, *arguments, *brief, cwd=folder, check=check)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    """The name of an engine. All its tests share a fleet, because a worker takes long to start."""
    return request.param


@pytest.fixture(scope="module")
def fleet(engine, tmp_path_factory):
    with Fleet(tmp_path_factory.mktemp(engine), DEFAULT_ARITHMETIC) as fleet:
        fleet.start_broker("--heartbeat-interval", "0.2")
        fleet.start_worker("w", *ENGINES[engine])
        yield fleet


@pytest.fixture(scope="module")
def client(fleet):
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 1)
        yield client


def test_image_to_image_and_inpainting(engine, fleet, client, images):
    generate(fleet, images, "--steps", "4", "--out", "plain.png")
    generate(fleet, images, "--steps", "4", "--image", "image.png", "--strength", "0.5", "--out", "close.png")
    masked = ("--image", "image.png", "--mask", "mask.png", "--strength", "1")
    generate(fleet, images, "--steps", "4", *masked, "--out", "masked.png")
    made = {name: Image.open(images / f"{name}.png") for name in ("plain", "close", "masked")}
    tasks = [json.loads(image.text["parameters"])["task"] for image in made.values()]
    assert tasks == ["text-to-image", "image-to-image", "inpainting"]
    assert len({image.tobytes() for image in made.values()}) == 3
    size = (256, 256) if engine == "simulated" else (64, 64)
    assert [image.size for image in made.values()] == [size, (64, 64), (64, 64)]


def test_unmasked_areas_are_kept(engine, fleet, client, images):
    needs_a_model(engine)
    generate(fleet, images, "--image", "image.png", "--mask", "mask.png", "--out", "masked.png")
    with Image.open(images / "masked.png") as image, Image.open(images / "image.png") as before:
        left = [(x, y) for x in range(4, 24, 4) for y in range(4, 60, 4)]
        right = [(x, y) for x in range(44, 62, 4) for y in range(4, 60, 4)]
        unmasked_change, masked_change = (
            sum(abs(a - b) for at in part for a, b in zip(image.getpixel(at), before.getpixel(at), strict=True))
            / len(part)
            for part in (left, right)
        )
    assert 3 * unmasked_change < masked_change


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_jpeg_and_webp_contain_the_parameters(engine, fleet, client, images, kind):
    done = generate(fleet, images, "--format", kind, "--quality", "60", "--width", "64")
    name = {"jpeg": "imagegen-1.jpg", "webp": "imagegen-1.webp"}[kind]
    assert name in done.stdout
    with Image.open(images / name) as image:
        assert image.format == kind.upper()
        embedded = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    embedded = json.loads(embedded.removeprefix(b"ASCII\0\0\0"))
    assert (embedded["prompt"], embedded["seed"], embedded["output_format"], embedded["quality"]) == (
        PROMPT,
        1,
        kind,
        60,
    )
    result = client.generate(PROMPT, output_format=kind)
    assert (result.format, result.image.format) == (kind, kind.upper())
    assert result.parameters["output_format"] == kind


def test_schedulers_and_extra_parameters(engine, fleet, client, images):
    needs_a_model(engine)
    options = {"seed": 1, "num_inference_steps": 6, "image": images / "image.png", "strength": 0.9}
    own = client.generate(PROMPT, **options)
    assert own.parameters["scheduler"] == "DDIMScheduler"
    other = client.generate(PROMPT, **options, scheduler="EulerDiscreteScheduler", extra={"eta": 0.0})
    assert other.parameters["scheduler"] == "EulerDiscreteScheduler"
    assert other.parameters["extra"] == {"eta": 0.0}
    assert other.parameters["strength"] == 0.9
    assert other.encoded != own.encoded
    assert client.generate(PROMPT, **options).encoded == own.encoded
    for wrong, words in (
        (
            {"scheduler": "FlowMatchEulerDiscreteScheduler"},
            r"supported: DDIMScheduler, .*EulerDiscreteScheduler",
        ),
        ({"extra": {"foo": 1}}, "does not accept 'foo'; accepted: clip_skip"),
        ({"extra": {"latents": [1.0]}}, "does not accept 'latents'"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            client.generate(PROMPT, **options, **wrong)


def test_invalid_images_are_rejected_and_the_next_request_succeeds(engine, fleet, client, images, monkeypatch):
    (images / "text.png").write_text("just some text")
    rejected = generate(fleet, images, "--image", "text.png", check=False)
    assert rejected.returncode == 2
    assert "image: expected an image, got 14 bytes of text (text.png)" in rejected.stderr
    good = (images / "image.png").read_bytes()
    mask = (images / "large-mask.png").read_bytes()
    monkeypatch.setattr(
        "imagegen_client.requests.read_image", lambda name, source: source
    )  # disable the client's own check
    wrong = [
        ({"image": good[:-40]}, "image: the png image cannot be decoded"),
        ({"image": good[:60] + bytes(40) + good[100:]}, "image: the png image cannot be decoded"),
        ({"image": huge_png(50_000, 50_000)}, "image: expected at most 8192x8192 pixels, got 50000x50000"),
        ({"image": b"just some text"}, "image: expected a PNG, JPEG or WebP image, got 14 bytes"),
        (
            {"image": good, "mask_image": mask},
            "mask_image: expected the size of the image, 64x64 pixels, got 200x200",
        ),
        ({"image": good, "strength": 0.001}, "strength: 0.001 of "),
    ]
    for inputs, words in wrong:
        with pytest.raises(InvalidRequestError, match=words):
            client.generate(PROMPT, **inputs)
        result = client.generate(PROMPT, image=good, num_inference_steps=2)
        assert isinstance(result, GenerationResult)
        assert result.parameters["task"] == "image-to-image"


def test_a_wrong_number_of_image_frames_is_rejected(engine, fleet, client, images, monkeypatch):
    from imagegen_client import sync

    made = sync.build
    for change, words in (
        (lambda frames: frames[:-1], r"expected 2 image frames \(image, mask_image\) after the body, got 1"),
        (
            lambda frames: (*frames, b"more"),
            r"expected 2 image frames \(image, mask_image\) after the body, got 3",
        ),
    ):

        def build(*arguments, change=change, **options):
            submit, seed, frames = made(*arguments, **options)
            return submit, seed, change(frames)

        monkeypatch.setattr(sync, "build", build)
        with pytest.raises(InvalidRequestError, match=words):
            client.generate(PROMPT, image=images / "image.png", mask_image=images / "mask.png")
    monkeypatch.undo()
    client.generate(PROMPT, image=images / "image.png", mask_image=images / "mask.png")


def test_an_image_too_large_for_the_model_is_scaled_down(engine, fleet, client, images):
    needs_a_model(engine)
    with Image.open(images / "large-image.png") as image:
        image.resize((600, 400)).save(images / "huge.png")
    result = client.generate(PROMPT, image=images / "huge.png", num_inference_steps=4)
    assert result.image.size == (152, 104)
    assert [text.split(":")[0] for text in result.warnings] == ["image"]
    options = {"num_inference_steps": 4, "image": Path(images / "large-image.png")}
    assert client.generate(PROMPT, **options).image.size == (128, 128), "four times the default area"
    assert client.generate(PROMPT, **options, width=64, height=96).image.size == (64, 96)


def test_concurrent_requests_of_all_tasks_have_the_images_of_requests_alone(engine, fleet, client, images):
    """Each image equals, up to rounding, the one that its request generates alone."""
    needs_a_model(engine)
    common = {"num_inference_steps": 8, "width": 64, "height": 64}
    requests = []
    for seed in range(12):
        image = Image.new("RGB", (64, 64), ("red", "lime", "blue")[seed % 3])
        inputs = [{}, {"image": image}, {"image": image, "mask_image": images / "mask.png"}][seed // 4]
        requests.append({"seed": seed, **common, **inputs})
    alone = [client.generate(PROMPT, **request).image for request in requests]
    jobs = [client.submit(PROMPT, **request) for request in requests]
    for job, image in zip(jobs, alone, strict=True):
        assert same_image(job.result(120).image, image)
