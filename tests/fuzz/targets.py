"""All targets."""

from collections.abc import Iterable
from functools import partial

from imagegen_broker.scheduling.strategies import STRATEGIES
from imagegen_protocol.frames import (
    decode_broker_to_client,
    decode_broker_to_worker,
    decode_from_client,
    decode_from_worker,
)
from tests.fuzz import files, gateway, http_servers, images, seeds, wire
from tests.fuzz.broker_core import broker_core
from tests.fuzz.client_core import client_core
from tests.fuzz.target import Target
from tests.fuzz.worker_core import worker_core


def _targets() -> Iterable[Target]:
    for name, decode in (
        ("header_from_client", decode_from_client),
        ("header_from_worker", decode_from_worker),
        ("header_to_client", decode_broker_to_client),
        ("header_to_worker", decode_broker_to_worker),
    ):
        yield Target(name, partial(wire.header, decode), seeds.headers(name))
    yield Target("request_body", wire.request_body, seeds.request_bodies())
    yield Target("capabilities", wire.capabilities, seeds.capabilities())
    yield Target("statistics", wire.statistics_frame, seeds.statistics())
    yield Target("endpoints", wire.endpoints, seeds.ENDPOINTS)
    yield Target("image_size", images.image_size, seeds.images())
    yield Target("worker_input", images.worker_input, seeds.images())
    yield Target("result_image", images.result_image, tuple(b"\0\1" + each for each in seeds.images()))
    yield Target("preview", images.preview, seeds.images())
    yield Target("client_input", images.client_input, seeds.images_of_many_formats())
    yield Target("gateway_upload", images.gateway_upload, seeds.images())
    yield Target("base64_image", images.base64_image, seeds.BASE64)
    yield Target("png_metadata", images.png_metadata, seeds.PROMPTS)
    yield Target("json_body", gateway.json_body, seeds.JSON_BODIES)
    yield Target("form_body", gateway.form_body, tuple(b"\0" + each for each in seeds.forms()))
    yield Target("gateway_body", gateway.gateway_body, seeds.gateway_bodies())
    yield Target("gateway_head", gateway.gateway_head, seeds.scripts(), is_script=True)
    yield Target("worker_metrics", gateway.worker_metrics, seeds.METRICS)
    yield Target("webhook_url", gateway.webhook_url, seeds.URLS)
    yield Target("http_connection", http_servers.http_connection, seeds.HTTP)
    yield Target("settings_file", files.settings_file, seeds.settings_files())
    yield Target("key_file", files.key_file, seeds.key_files())
    yield Target("prompts_file", files.prompts_file, seeds.PROMPTS_FILES)
    yield Target("file_names", files.file_names, seeds.PROMPTS)
    yield Target("log_line", files.log_line, seeds.PROMPTS)
    for strategy in sorted(STRATEGIES):
        name = f"broker_core_{strategy.replace('-', '_')}"
        yield Target(name, partial(broker_core, strategy), seeds.scripts(), is_script=True)
    yield Target("worker_core", worker_core, seeds.scripts(), is_script=True)
    yield Target("client_core", client_core, seeds.scripts(), is_script=True)


TARGETS: dict[str, Target] = {target.name: target for target in _targets()}
"""All targets by name."""
