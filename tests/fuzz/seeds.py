"""Valid inputs from which the runners start; they change and combine them."""

import io
import random
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import msgspec
from PIL import Image, PngImagePlugin

from imagegen_protocol.capabilities import ModelCapabilities, encode_capabilities
from imagegen_protocol.frames import encode
from imagegen_protocol.messages import BrokerToClient, BrokerToWorker, ClientMessage, WorkerMessage
from imagegen_protocol.request import encode_request, make_request
from imagegen_protocol.statistics import Statistics, to_json, to_msgpack
from tests.fuzz import values
from tests.fuzz.choices import Choices
from tests.pictures import huge_png, huge_webp

ROOT = Path(__file__).parents[2]
_SENDERS = {
    "header_from_client": ClientMessage,
    "header_from_worker": WorkerMessage,
    "header_to_client": BrokerToClient,
    "header_to_worker": BrokerToWorker,
}

ENDPOINTS = (
    b"tcp://127.0.0.1:5555",
    b"tcp://*:*",
    b"tcp://[::1%lo]:1",
    b"ipc:///run/imagegen/broker",
    b"host.example:65535",
    b"[::1]:8080",
)
BASE64 = (b"aW1hZ2U=", b"data:image/png;base64,aW1hZ2U=", b"data:,", "é".encode())
PROMPTS = (b"\x05a cat", "\x10\u202e\x1b[2J\n\x00\u2028é😀".encode(), b"\x02../../etc/passwd", b"\x03CON.. -.")
JSON_BODIES = (
    b'{"prompt": "p", "n": 2, "size": "64x64", "seed": 9223372036854775807, "guidance_scale": 1e308}',
    b'{"prompt": "\\ud800", "loras": [{"name": "a", "scale": 1}], "stream": true, "partial_images": 3}',
    b'[[[[1e999, -0, "\\u0000"]]]]',
)
_MORE_JSON = (
    b'{"prompt": "p", "image": "aW1hZ2U=", "mask": "data:image/png;base64,aW1hZ2U=", "webhook_url": "http://h/"}',
    b'{"prompt": "p", "priority": 100, "timeout_seconds": 0.001, "model": "m", "response_format": "url"}',
)
METRICS = (
    b'imagegen_worker_gpu_memory_used_bytes{worker="w",gpu="0"} 1e9\n'
    b'imagegen_worker_gpu_temperature_celsius{worker="w"} 50 1700000000\n',
    b"# TYPE imagegen_worker_gpu_memory_total_bytes gauge\nimagegen_worker_gpu_memory_total_bytes NaN\n",
)
URLS = (
    b"http://example.org/path?q=1#f",
    b"https://[::ffff:1.2.3.4]:443/",
    b"http://user:pw@h:99999/",
    b"https://xn--bcher-kva.example.",
)
HTTP = (
    b"GET /stats?x HTTP/1.1\r\nHost: localhost:8080\r\nAccept: application/openmetrics-text; version=1\r\n\r\n",
    b"HEAD /metrics HTTP/1.0\r\nHost: [::1]\r\nAccept: text/plain;q=0.5;escaping=allow-utf-8\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: [::1]:1\r\n\r\nGET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"POST /readyz HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
)
PROMPTS_FILES = (
    b'# a comment\n\na cat\n{"prompt": "p", "seed": 1, "num_images": 2, "extra": {"eta": 0.5}}\n',
    b'{"prompt": "p", "image": "missing.png", "loras": [{"name": "a"}], "timeout_seconds": 1, "model": "m"}\n',
)


def scripts() -> tuple[bytes, ...]:
    """Return choices for scripts of a hundred steps."""
    return tuple(random.Random(number).randbytes(1500) for number in range(8))


def headers(name: str) -> tuple[bytes, ...]:
    """Return two headers of each kind: a short and a long one."""
    source = random.Random(name)
    kinds = get_args(_SENDERS[name])
    return tuple(
        encode(values.make(kind, Choices(source.randbytes(size)))) for kind in kinds for size in (0, 4000)
    )


def request_bodies() -> tuple[bytes, ...]:
    """Return bodies of requests."""
    small = make_request(prompt="p", seed=1)
    large = make_request(
        prompt="p" * 300,
        seed=2**63 - 1,
        inputs=["image", "mask_image"],
        strength=0.5,
        loras=[{"name": "a", "scale": -1.0}],
        output_format="jpeg",
        quality=1,
        extra={"eta": 0.5, "sigmas": [1.0, 0.5], "options": {"a": None}},
    )
    return encode_request(small), encode_request(large)


def capabilities() -> tuple[bytes, ...]:
    """Return frames with the capabilities of a few models."""
    type_ = msgspec.inspect.type_info(ModelCapabilities)
    found: list[bytes] = []
    for number in range(4):
        source = Choices(random.Random(number).randbytes(2000))
        found += encode_capabilities({name: values.value(type_, source) for name in "mn"})
    return tuple(found)


def statistics() -> tuple[bytes, ...]:
    """Return statistics as msgpack and as JSON."""
    type_ = msgspec.inspect.type_info(Statistics)
    found = [values.value(type_, Choices(random.Random(number).randbytes(9000))) for number in range(2)]
    return tuple(write(each) for each in found for write in (to_msgpack, to_json))


def _encode(mode: str, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (16, 9)).save(buffer, format=format_, **options)
    return buffer.getvalue()


def images() -> tuple[bytes, ...]:
    """Return images of the protocol's formats, with metadata, and some that claim to be huge."""
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "{}", zip=True)
    text.add_itxt("prompt", "é", lang="de", zip=True)
    animation = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(animation, format="PNG", save_all=True, append_images=frames[1:])
    return (
        _encode("RGB", "PNG", exif=exif, pnginfo=text),
        _encode("P", "PNG", transparency=0),
        _encode("I;16", "PNG"),
        _encode("RGBA", "PNG", dpi=(72, 72)),
        _encode("RGB", "JPEG", exif=exif, comment=b"c"),
        _encode("CMYK", "JPEG", progressive=True),
        _encode("RGB", "WEBP", exif=exif),
        _encode("RGBA", "WEBP", lossless=True),
        animation.getvalue(),
        huge_png(8192, 8193),
        huge_webp(16_000, 16_000),
    )


def images_of_many_formats() -> tuple[bytes, ...]:
    """Return images of formats that the client converts."""
    kinds = ("BMP", "GIF", "ICO", "PPM", "TGA", "TIFF", "PCX", "SGI", "DDS", "MSP", "JPEG2000", "EPS", "XBM")
    found = list(images())
    for kind in kinds:
        mode = "1" if kind in ("MSP", "XBM") else "RGB"
        try:
            found.append(_encode(mode, kind))
        except (OSError, KeyError):  # this build of Pillow can't write it
            continue
    return tuple(found)


def forms() -> Iterable[bytes]:
    """Return multipart bodies."""
    image = images()[3]
    parts = [
        b'Content-Disposition: form-data; name="prompt"\r\n\r\na cat',
        b'Content-Disposition: form-data; name="loras"\r\n\r\n[{"name": "a"}]',
        b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        + image,
        b"Content-Disposition: form-data; name=\"image[]\"; filename*=utf-8''%ff\r\n\r\n" + image,
        b'Content-Disposition: form-data; name="mask"\r\nContent-Type: text/plain; charset=utf-16\r\n\r\nx',
    ]
    for chosen in (parts[:3], parts[1:], parts):
        yield b"".join(b"--b0undary\r\n" + part + b"\r\n" for part in chosen) + b"--b0undary--\r\n"


def gateway_bodies() -> tuple[bytes, ...]:
    """Return bodies for each route: the first byte selects the route, the second one the content type."""
    texts = [bytes([route, 0]) + body for route in (0, 1, 2) for body in (*JSON_BODIES, *_MORE_JSON)]
    return (*texts, *(bytes([1, 1]) + form for form in forms()))


def settings_files() -> tuple[bytes, ...]:
    """Return the example settings without comments, and values of other types."""
    found = [
        b"\n".join(line for line in path.read_bytes().splitlines() if not line.startswith(b"# "))
        for path in sorted((ROOT / "configs").glob("*.toml"))
    ]
    odd = b'frontend = 2024-01-01T00:00:00Z\nliveness = 0xff\nhttp = ["a", {b = 1}]\n[table]\n"key" = inf\n'
    return (*found, odd)


def key_files() -> tuple[bytes, ...]:
    """Return a pair of key files."""
    public = b'#   ZeroMQ CURVE Public Certificate\n\nmetadata\n    name = "a"\ncurve\n    public-key = "%s"\n'
    secret = public + b'    secret-key = "%s"\n'
    return public % (b"x" * 40), secret % (b"x" * 40, b"y" * 40)
