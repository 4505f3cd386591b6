"""Write `docs/protocol.schema.json`, a JSON schema of all messages of the protocol, from their structs.

python -m tools.protocol_schema
"""

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from imagegen_protocol import messages
from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.limits import ID_BYTES, MAX_TOKEN_BYTES, VERSION
from imagegen_protocol.request import GenerationRequest
from tools.message_docs import descriptions

PATH = Path(__file__).parents[1] / "docs/protocol.schema.json"
DIRECTIONS: dict[str, Any] = {
    "client to broker": messages.ClientMessage,
    "broker to client": messages.BrokerToClient,
    "worker to broker": messages.WorkerMessage,
    "broker to worker": messages.BrokerToWorker,
}
_DESCRIPTION = """\
The maps of the imagegen protocol, which are encoded with msgpack; protocol.md is normative. `directions` lists \
the headers that each role may send. `body` describes the first frame of the payload of `submit` and `work`, and \
`capabilities` each value in the frame of `ready`. JSON has no bytes: where `msgpackType` is `bin`, the value is \
a bin of `minBytes` to `maxBytes` bytes. A `number` is a float or an int, and an `integer` is an int, never a \
float."""

_BINS = {
    (24, 24): {"minBytes": ID_BYTES, "maxBytes": ID_BYTES},
    (0, 24): {"minBytes": 0, "maxBytes": MAX_TOKEN_BYTES},
}
"""Lengths of a bin by those that msgspec states, which are of its base64 text."""


def json_schema() -> dict[str, Any]:
    """Return the schema of all messages."""
    kinds = [*DIRECTIONS.values(), GenerationRequest, ModelCapabilities]
    references, definitions = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    texts = descriptions()
    for name, definition in definitions.items():
        definition["description"] = _first_paragraph(definition.get("description", ""))
        for key, schema in definition.get("properties", {}).items():
            if (text := _description(name, key, texts)) is not None:
                definition["properties"][key] = {"description": text, **schema}
        if "v" in definition.get("properties", {}):
            del definition["properties"]["v"]["default"]
            definition["required"].insert(1, "v")
    *headers, body, capabilities = references
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"imagegen protocol, version {VERSION}",
        "description": _DESCRIPTION,
        "directions": dict(zip(DIRECTIONS, headers, strict=True)),
        "body": body,
        "capabilities": capabilities,
        "$defs": _with_bins({name: definitions[name] for name in sorted(definitions)}),
    }


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _description(struct: str, key: str, texts: dict[str, dict[str, str]]) -> str | None:
    """Return the docstring of a field, which the struct or one of its bases declares."""
    for base in getattr(messages, struct, object).__mro__:
        if (text := texts.get(base.__name__, {}).get(key)) is not None:
            return re.sub(r"\bNone\b", "null", text)
    return None


def _with_bins(schema: Any) -> Any:
    """Return a schema in which bytes are a bin in place of a string in base64."""
    if isinstance(schema, list):
        return [_with_bins(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("contentEncoding") != "base64":
        return {key: _with_bins(each) for key, each in schema.items()}
    kept = {key: each for key, each in schema.items() if key in ("description", "default")}
    return kept | {"msgpackType": "bin"} | _BINS[schema.get("minLength", 0), schema["maxLength"]]


def render() -> str:
    """Return the text of the file."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the file."""
    PATH.write_text(render())


if __name__ == "__main__":
    main()
