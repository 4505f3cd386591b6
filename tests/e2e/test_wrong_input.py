"""Invalid input at every interface of a running fleet: clear errors, and the next valid request succeeds."""

import math
import os

import msgpack
import pytest
from PIL import UnidentifiedImageError

from imagegen_client import Client, GenerationFailedError, InvalidRequestError, ModelNotFoundError, RequestError
from imagegen_protocol.limits import DEFAULT_INLINE_BYTES, MAX_COUNT
from imagegen_protocol.messages import Submit
from imagegen_protocol.request import GenerationRequest
from tests.e2e.conftest import PATIENT
from tests.e2e.wrong_values import Wrong, wrong_values
from tests.raw import Peers, ready, result
from tools.fleet import Fleet

MODELS = ("simulated", "builtin:shapes")
GOOD = {
    "prompt": "a red circle on a blue background",
    "seed": 7,
    "num_inference_steps": 1,
    "width": 64,
    "height": 64,
}
NAMED = [
    Wrong("prompt", "", ">= 1"),
    Wrong("prompt", " \n\t", "at least 1"),
    Wrong("prompt", "x" * 1_000_000, "10000"),
    Wrong("width", 0, ">= 8"),
    Wrong("width", -1, ">= 8"),
    Wrong("width", 10**9, "<= 8192"),
    Wrong("width", "big", "int"),
    Wrong("num_inference_steps", 0, ">= 1"),
    Wrong("num_inference_steps", 10**6, "<= 1000"),
    Wrong("guidance_scale", math.nan, "0"),
    Wrong("guidance_scale", math.inf, "100"),
    Wrong("seed", -1, ">= 0"),
    Wrong("seed", 2**64, "<= 9223372036854775807"),
]
"""Common mistakes; further invalid values are derived from the types."""
BODY = wrong_values(GenerationRequest)
HEADER = wrong_values(Submit, "v", "request_id", "shape")
NOT_OPTIONS = ("traceparent", "inline_bytes", "frame_bytes")
"""Keys of SUBMIT that the client sets by itself."""
CLIENTS = [
    wrong
    for wrong in (*NAMED, *BODY, *HEADER)
    if wrong.value is not None and wrong.field not in ("images", "inputs", "image", "mask_image", *NOT_OPTIONS)
]
"""Invalid client options. None means the default; images are checked in `input_images`."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A broker with a long liveness time, for peers simulated by tests, and a worker of each kind."""
    with Fleet(log_folder=tmp_path_factory.mktemp("logs")) as fleet:
        fleet.start_broker(*PATIENT)
        free = ("--simulated-batch-seconds", "0", "--simulated-image-seconds", "0")
        fleet.start_worker("simulated", "--backend", "simulated", *free)
        fleet.start_worker("shapes", "--device", "cpu", "--torch-threads", "1")
        with Client(fleet.frontend) as client:
            fleet.wait_for_workers(client, 2)
        yield fleet


@pytest.fixture(scope="module")
def client(fleet):
    with Client(fleet.frontend) as client:
        yield client


@pytest.fixture
def connect():
    peers = Peers()
    yield peers
    peers.close()


@pytest.fixture
def raw(fleet, client, connect):
    """A client without checks; after each test, valid requests must succeed."""
    peer = connect(fleet.frontend)
    yield peer
    peer.send({"type": "goodbye"})
    jobs = [client.submit(**GOOD, model=model) for model in MODELS]
    assert [job.result(120).seed for job in jobs] == [7, 7]
    assert [process.poll() for process in fleet.processes.values()] == [None] * 3


def error_for(raw, header, *frames):
    """Send a SUBMIT with any header; return the ERROR that answers it. The broker fetches a long body."""
    request_id, payload = os.urandom(16), b"".join(frames)
    submit = {"type": "submit", "request_id": request_id, **header}
    if len(payload) > DEFAULT_INLINE_BYTES:
        submit, frames = {"frame_bytes": [len(frame) for frame in frames], **submit}, ()
    raw.send(submit, *frames)
    while True:
        message, _ = raw.receive()
        if message["type"] == "fetch":
            send_chunks(raw, message, payload)
        elif message["type"] == "error" and message["request_id"] in (request_id, None):
            return message


def send_chunks(raw, fetch, payload):
    end = fetch["offset"] + fetch["length"]
    for offset in range(fetch["offset"], end, fetch["chunk_bytes"]):
        about = {"request_id": fetch["request_id"], "payload_id": fetch["payload_id"], "offset": offset}
        raw.send({"type": "chunk", **about}, payload[offset : min(offset + fetch["chunk_bytes"], end)])


def shows(message, wrong):
    """Return whether an error names the field, the given value and the allowed values."""
    return f"{wrong.field}: " in message and repr(wrong.value)[:12] in message and wrong.says in message


# ---- through the client ------------------------------------------------------------------------------------


def ids(wrong):
    return str(wrong) if isinstance(wrong, Wrong) else None


# In the client None means the default.
@pytest.mark.parametrize("wrong", CLIENTS, ids=ids)
def test_the_client_rejects_an_invalid_field_before_sending(client, wrong):
    with pytest.raises(InvalidRequestError) as caught:
        client.submit(**{**GOOD, wrong.field: wrong.value})
    assert shows(caught.value.message, wrong), caught.value.message


def test_the_client_rejects_an_unknown_option(client):
    with pytest.raises(InvalidRequestError, match="unknown field `colour`; known are prompt, seed, "):
        client.submit(**GOOD, colour="red")


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "model"])
def test_the_client_rejects_text_that_cannot_be_encoded(client, field):
    with pytest.raises(InvalidRequestError, match=rf"{field}: .*, got 'half \\ud800'"):
        client.submit(**{**GOOD, field: "half \ud800"})
    assert client.generate(**GOOD).seed == GOOD["seed"]


# ---- past the client: the worker's and the broker's own checks ---------------------------------------------


@pytest.mark.parametrize("wrong", [*NAMED, *BODY], ids=ids)
def test_each_worker_rejects_an_invalid_field_of_the_body(raw, wrong):
    value = 2**64 - 1 if wrong.value == 2**64 else wrong.value
    for model in MODELS:
        error = error_for(raw, {"model": model}, msgpack.packb({**GOOD, wrong.field: value}))
        assert error["code"] == "invalid_request"
        if len(repr(value)) > 256 * 1024:
            assert "the body is 1000" in error["message"]
            assert "at most 262144 are allowed" in error["message"]
        else:
            assert shows(error["message"], wrong._replace(value=value)), error["message"]


@pytest.mark.parametrize("wrong", HEADER, ids=ids)
def test_the_broker_rejects_an_invalid_field_of_the_header(raw, wrong):
    error = error_for(raw, {wrong.field: wrong.value}, msgpack.packb(GOOD))
    assert error["code"] == "protocol_error"
    assert error["request_id"] is not None
    assert shows(error["message"], wrong), error["message"]


@pytest.mark.parametrize("field", ["width", "height"])
def test_the_error_for_an_unsupported_size_names_the_nearest_supported_ones(raw, client, field):
    error = error_for(raw, {"model": "builtin:shapes"}, msgpack.packb({**GOOD, field: 63}))
    assert error["code"] == "invalid_request"
    assert error["message"].startswith(f"{field}: ")
    assert error["message"].endswith("got 63; use 56 or 64")
    with pytest.raises(InvalidRequestError, match="got 63; use 56 or 64"):
        client.generate(**{**GOOD, field: 63}, model="builtin:shapes")


def test_the_error_for_an_unknown_model_lists_the_served_ones(client):
    with pytest.raises(ModelNotFoundError, match=r"no worker serves the model 'dall-e'; served are: .*simulated"):
        client.generate(**GOOD, model="dall-e")


LIST = b"\x91"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the payload is 0 bytes long"),
        (b"\xc1", "not msgpack"),
        (os.urandom(1000), ""),
        (msgpack.packb(GOOD)[:-1], "not msgpack"),
        (msgpack.packb(GOOD)[:7], "not msgpack"),
        (msgpack.packb(GOOD) + b"\x00", "not msgpack"),
        (msgpack.packb([GOOD]), "must be a msgpack map"),
        (msgpack.packb({1: 2}), "int is not allowed for map key"),
        (msgpack.packb({b"prompt": 2}), "must be a msgpack map with string keys"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\xdb\xff\xff\xff\xff", "not msgpack"),
        (b"\xc9\xff\xff\xff\xff\x00", "not msgpack"),
        (LIST * 200_000, "not msgpack"),
        (b"\x81\xa6prompt" + LIST * 1_000 + b"\x01", "prompt: expected `str`, got `array`"),
        (b"\x81\xa6prompt" + LIST * 1_023 + b"\x01", ""),
        (b"\x81\xa6prompt\xdd\x00\x03\xd0\x90" + b"\x00" * 250_000, "prompt: expected `str`, got `array`"),
        (b"\x81\xa6prompt\xa2\xff\xfe", "not msgpack"),
        (b"\x81\xa6prompt\xd4\xff\x00", ""),
        (msgpack.packb({**GOOD, "colour": "red"}), "unknown field `colour`; known are prompt, seed, "),
        (msgpack.packb({**GOOD, "c" * 200_000: "red"}), "unknown field `cccccccc"),
        (msgpack.packb({"prompt": "a cat"}), "missing required field `seed`"),
        (b"x" * 262_145, "the body is 262145 bytes long, at most 262144 are allowed"),
    ],
    ids=range(23),
)
def test_a_malformed_body_is_rejected(raw, body, says):
    for model in MODELS:
        error = error_for(raw, {"model": model}, body)
        assert error["code"] == "invalid_request"
        assert says in error["message"]
        assert 0 < len(error["message"]) <= 2000


@pytest.mark.parametrize(
    ("frames", "code", "says"),
    [
        ([], "invalid_request", "a submit needs a body"),
        ([msgpack.packb(GOOD), b"image"], "invalid_request", "image"),
        ([msgpack.packb(GOOD), *[b""] * 64], "invalid_request", "image"),
        ([msgpack.packb(GOOD), *[b""] * 65], "protocol_error", "66 frames"),
        ([msgpack.packb(GOOD), *[b""] * 5000], "protocol_error", "66 frames"),
    ],
    ids=["none", "one too many", "64 too many", "66", "5000"],
)
def test_a_wrong_number_of_frames_is_rejected(raw, frames, code, says):
    for model in MODELS:
        error = error_for(raw, {"model": model}, *frames)
        assert error["code"] == code
        assert says in error["message"]


def test_a_frame_beyond_the_limit_closes_the_connection_of_its_sender(raw):
    raw.send({"type": "submit", "request_id": os.urandom(16)}, bytes(64 * 1024 * 1024 + 1))
    raw.send({"type": "submit", "request_id": os.urandom(16)})
    assert "a submit needs a body" in raw.receive("error")[0]["message"]


# ---- a faulty worker ---------------------------------------------------------------------------------------


@pytest.fixture
def faulty_worker(fleet, raw, connect):
    """A worker simulated by the test, the only one that serves its model."""
    worker = connect(fleet.brokers["broker"].backend)
    worker.session = ready(worker, name="faulty", models=["nonsense"], capacity=1)["session"]
    yield worker
    worker.send({"type": "goodbye"})


@pytest.fixture
def submit_to_faulty(client, faulty_worker):
    """Return a function that submits a request to the faulty worker and returns the job and its id."""

    def submit(**options):
        job = client.submit(**GOOD, model="nonsense", **options)
        return job, faulty_worker.receive("work")[0]["request_id"]

    return submit


def test_a_result_without_its_images_is_an_error(faulty_worker, submit_to_faulty):
    job, request_id = submit_to_faulty()
    info = [{"format": "png", "width": 1, "height": 1, "seed": 7}]
    result(faulty_worker, request_id, images=info)
    with pytest.raises(GenerationFailedError, match="expected one frame for each of 1 images, got 0"):
        job.result(60)
    assert faulty_worker.receive("release")[0]["request_ids"] == [request_id]


def test_an_empty_image_is_an_error(faulty_worker, submit_to_faulty):
    job, request_id = submit_to_faulty()
    result(faulty_worker, request_id, b"")
    with pytest.raises(GenerationFailedError, match="the payload is 0 bytes long"):
        job.result(60)


@pytest.mark.parametrize("frame", [b"no picture", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_an_invalid_image_raises_when_it_is_decoded(faulty_worker, submit_to_faulty, frame):
    job, request_id = submit_to_faulty()
    result(faulty_worker, request_id, frame)
    answer = job.result(60)
    with pytest.raises((UnidentifiedImageError, SyntaxError, OSError)):
        answer.image.load()


def test_an_error_with_an_unknown_code_ends_the_request(faulty_worker, submit_to_faulty):
    job, request_id = submit_to_faulty()
    faulty_worker.send({"type": "error", "request_id": request_id, "code": "bad_mood", "message": "not today"})
    with pytest.raises(RequestError, match="bad_mood: not today"):
        job.result(60)


UNREADABLE = [
    [b""],
    [b"\xc1"],
    [os.urandom(500)],
    [LIST * 60_000],
    [b"x" * 70_000],
    [msgpack.packb({"v": 2, "type": "result"})],
    [msgpack.packb({"v": 2, "type": "dance"})],
    [msgpack.packb({"v": 2, "type": "result", "worker": "faulty"}), b"image"],
    [msgpack.packb({"v": 2, "type": "heartbeat", "session": -1})],
    [msgpack.packb({"v": 2, "type": "heartbeat", "session": 1, "queued": [b"short"]})],
    [msgpack.packb({"v": 2, "type": "heartbeat", "session": 1, "seconds_per_image": math.nan})],
    [msgpack.packb({"v": 2, "type": "ready", "name": "two\nlines"})],
    [msgpack.packb({"v": 2, "type": "goodbye"}), *[b""] * 100],
]


@pytest.mark.parametrize("frames", UNREADABLE, ids=range(len(UNREADABLE)))
def test_malformed_messages_of_a_worker_reach_no_client(faulty_worker, submit_to_faulty, frames):
    job, request_id = submit_to_faulty(progress=True)
    faulty_worker.socket.send_multipart(frames)
    assert faulty_worker.receive("error")[0]["code"] in ("protocol_error", "unsupported_version")
    result(faulty_worker, request_id, b"the answer")
    assert list(job.progress()) == []
    assert job.result(60).encoded == [b"the answer"]


def test_valid_but_nonsensical_messages_of_a_worker_have_no_effect(fleet, faulty_worker, submit_to_faulty, client):
    job, request_id = submit_to_faulty(progress=True)
    stranger = os.urandom(16)
    faulty_worker.send(
        {"type": "progress", "request_id": request_id, "step": 10**9, "steps": 0}, bytes(100_000), b""
    )
    faulty_worker.send({"type": "progress", "request_id": stranger, "step": 1})
    result(faulty_worker, stranger, b"an answer to no request")
    faulty_worker.send({"type": "error", "request_id": stranger, "code": "returned", "message": ""})
    faulty_worker.send({"type": "error", "code": "of no request", "message": ""})
    ids = [os.urandom(16) for _ in range(1024)]
    held = {"queued": [request_id, *ids[1:]], "running": ids, "finished": ids}
    faulty_worker.send(
        {"type": "heartbeat", "session": faulty_worker.session, "beat": MAX_COUNT, "step_age_seconds": 0.0, **held}
    )

    def depth():
        (shown,) = [each for each in client.stats()["per_gpu_stats"] if each["worker"] == "faulty"]
        return shown["current_queue_depth"]

    fleet.wait_until(lambda: depth() >= 1024, "the reported queue depth")
    faulty_worker.send({"type": "heartbeat", "session": faulty_worker.session, "queued": [request_id]})
    result(faulty_worker, request_id, b"the answer")
    result(faulty_worker, request_id, b"another answer")
    assert job.result(60).encoded == [b"the answer"]
    assert {event.step for event in job.progress() if event.state == "running"} <= {10**9}


def test_a_worker_with_the_name_of_a_live_one_is_rejected(fleet, client, raw, connect):
    second = connect(fleet.brokers["broker"].backend)
    second.send(
        {
            "type": "ready", "worker_id": os.urandom(16), "name": "simulated", "host": "there", "gpu_id": 0,
            "device": "cpu", "backend": "none", "models": ["simulated"], "capacity": 1, "max_batch_size": 1,
        }
    )  # fmt: skip
    error, _ = second.receive("error")
    assert error["code"] == "worker_name_taken"
    assert "is named 'simulated'; choose another name with --name" in error["message"]
    assert client.generate(**GOOD, model="simulated").worker == "simulated"
