"""Input images reach the worker unchanged, also when the request is resent."""

import asyncio
import io

import msgpack
import pytest
from PIL import Image

from imagegen_client import AsyncClient, Client
from tests.integration.client.peers import PATIENCE, PNG

MASK = Image.new("L", (4, 2), 255)


def pixels(frame):
    with Image.open(io.BytesIO(frame)) as image:
        return image.mode, image.tobytes()


def test_image_and_mask_reach_the_worker_uncopied_and_in_order(client, worker, tmp_path):
    (tmp_path / "red.png").write_bytes(PNG)
    client.generate("x", image=tmp_path / "red.png", mask_image=MASK, strength=0.5)
    client.generate("x", image=PNG)
    client.generate("x")
    (image, mask), alone, none = worker.images
    assert (image, alone, none) == (PNG, [PNG], [])
    assert pixels(mask) == ("L", MASK.tobytes())


def test_frames_of_any_size_are_sent(client, worker):
    noise = Image.effect_noise((2048, 2048), 90).convert("RGB")  # some 4 MB, which nobody may copy or cut
    client.generate("x", image=noise)
    assert pixels(worker.images[0][0]) == ("RGB", noise.tobytes())


def test_map_encodes_shared_images_once(client, worker, monkeypatch):
    saved = []
    monkeypatch.setattr(
        Image.Image,
        "save",
        lambda self, file, *, save=Image.Image.save, **options: (saved.append(1), save(self, file, **options)),
    )
    prompts = ["a", {"prompt": "b", "image": PNG}, "c"]
    assert len(list(client.map(prompts, image=Image.new("RGB", (4, 2), "blue")))) == 3
    assert len(saved) == 1
    by_prompt = dict(zip(worker.begun, worker.images, strict=True))
    assert by_prompt["b"] == [PNG]
    assert by_prompt["a"] == by_prompt["c"] != [PNG]


def test_the_async_client_sends_images(broker, worker):
    async def body():
        async with AsyncClient(broker.frontend_endpoint) as client:
            await client.generate("a", image=PNG, mask_image=MASK)
            await client.submit("b", image=PNG).result()
            prompts = ["c", {"prompt": "d", "mask_image": MASK}]
            return [result.seed async for result in client.map(prompts, image=PNG)]

    assert len(asyncio.run(asyncio.wait_for(body(), PATIENCE))) == 2
    by_prompt = dict(zip(worker.begun, worker.images, strict=True))
    assert [len(by_prompt[prompt]) for prompt in "abcd"] == [2, 1, 1, 2]
    assert {images[0] for images in worker.images} == {PNG}


def test_images_are_resent_after_a_worker_dies(start_broker, start_worker):
    broker = start_broker()
    first = start_worker(broker, name="first")
    with Client(broker.frontend_endpoint) as client:
        job = client.submit("hold", image=PNG, mask_image=MASK)
        first.wait_for_work(1)
        second = start_worker(broker, name="second")
        second.let_go.set()
        first.stop()
        assert job.result(PATIENCE).worker == "second"
    assert second.images == first.images


def test_images_are_resent_after_a_broker_dies(start_broker, broker, start_worker):
    second = start_broker()
    worker = start_worker(second)
    with Client([broker.frontend_endpoint, second.frontend_endpoint]) as client:
        job = client.submit("x", image=PNG, mask_image=MASK)
        client.stats()
        start_broker.stop(broker)
        job.result(PATIENCE)
    ((image, mask),) = worker.images
    assert (image, pixels(mask)) == (PNG, ("L", MASK.tobytes()))


def test_images_are_resent_after_an_overload(false_broker):
    with Client(false_broker.endpoint, retry_overloaded=True) as client:
        job = client.submit("x", seed=4, image=PNG, mask_image=MASK)
        false_broker.receive("heartbeat")
        false_broker.heartbeat()
        first, frames = false_broker.receive("submit")
        refusal = {"code": "overloaded", "message": "full", "retry_after_seconds": 0.05}
        false_broker.say(type="error", request_id=first["request_id"], **refusal)
        again, same = false_broker.receive("submit")
        assert len(frames) == 3
        assert same == frames
        image = {"format": "png", "width": 4, "height": 2, "seed": 4}
        answer = {"type": "result", "request_id": again["request_id"], "worker": "w", "model": "m"}
        false_broker.send(msgpack.packb({"v": 2, "images": [image], **answer}), PNG)
        assert job.result(PATIENCE).seed == 4


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_the_received_format_is_kept(false_broker, tmp_path, kind):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(buffer, kind)
    with Client(false_broker.endpoint) as client:
        job = client.submit("x", output_format=kind)
        false_broker.receive("heartbeat")
        false_broker.heartbeat()
        submit, _ = false_broker.receive("submit")
        image = {"format": kind, "width": 4, "height": 2, "seed": 4}
        answer = {"type": "result", "request_id": submit["request_id"], "worker": "w", "model": "m"}
        false_broker.send(msgpack.packb({"v": 2, "images": [image], **answer}), buffer.getvalue())
        result = job.result(PATIENCE)
    assert (result.format, result.image.format) == (kind, kind.upper())
    (path,) = result.save(tmp_path / "made")
    assert (path.suffix, path.read_bytes()) == (f".{kind}", buffer.getvalue())
