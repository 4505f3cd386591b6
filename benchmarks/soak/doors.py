"""Requests over HTTP, as a program without our client would send them."""

import base64
import http.client
import io
import json
import threading
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

from benchmarks.soak.counts import Counts
from benchmarks.soak.requests import SIMULATED, Ask, Judge, WrongError

TRIES = 120
RETRY_SECONDS = 0.5
_PROXYLESS = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Doors:
    """Several gateways; each call goes to the next."""

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._judge = Judge()

    def call(self, kind: str, seed: int, counts: Counts) -> None:
        """Make one call of a kind and check its answer. Raises `WrongError`, `OSError`."""
        url = self._urls[seed % len(self._urls)]
        options: dict[str, Any] = {"prompt": f"soak {seed}", "model": SIMULATED, "seed": seed}
        ask = Ask(f"gateway {kind}", options | {"width": 64, "height": 64})
        body: dict[str, Any] = {**options, "size": "64x64", "num_inference_steps": 8}
        match kind:
            case "images":
                answer = self._post(f"{url}/v1/images/generations", body | {"n": 2}, counts)
                self._look(ask, [base64.b64decode(image["b64_json"]) for image in answer["data"]], 2)
            case "edits":
                picture = _png()
                data, form = _form(body, {"image": picture})
                answer = self._send(urllib.request.Request(f"{url}/v1/images/edits", data, form), counts)
                self._look(ask, [base64.b64decode(image["b64_json"]) for image in answer["data"]], 1)
            case "jobs":
                self._job(url, ask, body, counts)
            case "bad":
                try:
                    self._post(f"{url}/v1/images/generations", body | {"num_inference_steps": 0}, counts)
                except urllib.error.HTTPError as error:
                    with error:
                        if error.code != 400:
                            raise
                    return
                raise WrongError("gateway bad: an answer to a request that is wrong")

    def _job(self, url: str, ask: Ask, body: dict[str, Any], counts: Counts) -> None:
        key = {"Idempotency-Key": uuid.uuid4().hex}
        job = self._post(f"{url}/v1/jobs", body, counts, key)
        while job["state"] in ("queued", "running"):
            threading.Event().wait(RETRY_SECONDS)
            job = self._send(urllib.request.Request(f"{url}/v1/jobs/{job['id']}"), counts)
        if job["state"] != "succeeded":
            raise WrongError(f"gateway jobs: {job['state']}: {job.get('error')}")
        # The gateway's name for it, but by the door that we know.
        paths = [url + "/v1/" + image["url"].split("/v1/", 1)[1] for image in job["images"]]
        self._look(ask, [self._get(path, counts) for path in paths], 1)

    def _look(self, ask: Ask, images: list[bytes], count: int) -> None:
        if len(images) != count:
            raise WrongError(f"{ask.kind}: {len(images)} images in place of {count}")
        self._judge.look(ask, [io.BytesIO(image) for image in images], None)

    def _post(self, url: str, body: dict[str, Any], counts: Counts, headers: dict[str, str] | None = None) -> Any:
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self._send(urllib.request.Request(url, json.dumps(body).encode(), headers), counts)

    def _send(self, request: urllib.request.Request, counts: Counts) -> Any:
        return json.loads(self._fetch(request, counts))

    def _get(self, url: str, counts: Counts) -> bytes:
        return self._fetch(urllib.request.Request(url), counts)

    def _fetch(self, request: urllib.request.Request, counts: Counts) -> bytes:
        """Call, and again while the gateway is away or says that it leaves."""
        for attempt in range(TRIES):
            try:
                with _PROXYLESS.open(request, timeout=60) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                if error.code != 503 or attempt + 1 == TRIES:
                    raise
                error.close()
            except (OSError, http.client.HTTPException):  # refused, or cut off by a restart
                if attempt + 1 == TRIES:
                    raise
            counts.retries += 1
            time.sleep(RETRY_SECONDS)
        raise AssertionError("the last try returns or raises")


def _png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _form(fields: dict[str, Any], files: dict[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a multipart form."""
    boundary = uuid.uuid4().hex
    parts = []
    for name, value in fields.items():
        parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for name, content in files.items():
        disposition = f'Content-Disposition: form-data; name="{name}"; filename="{name}.png"'
        parts.append(f"--{boundary}\r\n{disposition}\r\nContent-Type: image/png\r\n\r\n".encode())
        parts.append(content + b"\r\n")
    parts.append(f"--{boundary}--\r\n".encode())
    return b"".join(parts), {"Content-Type": f"multipart/form-data; boundary={boundary}"}
