"""The files for other implementations: the vectors and the schema agree with the encoder and the decoders."""

import json
from pathlib import Path
from typing import get_args

import jsonschema
import msgpack
import msgspec
import pytest

from imagegen_protocol import (
    ProtocolError,
    decode_broker_to_client,
    decode_broker_to_worker,
    decode_from_client,
    decode_from_worker,
    encode,
)
from tools import protocol_schema, protocol_vectors

DOCS = Path(__file__).parents[3] / "docs"
DECODERS = {
    "client to broker": decode_from_client,
    "worker to broker": decode_from_worker,
    "broker to client": decode_broker_to_client,
    "broker to worker": decode_broker_to_worker,
}
VECTORS = json.loads((DOCS / "protocol-vectors.json").read_text())
SCHEMA = json.loads((DOCS / "protocol.schema.json").read_text())


def name(vector):
    return f"{vector['direction']}: {vector['name']}"


def check_bin(validator, kind, value, schema):
    assert kind == "bin"
    if not isinstance(value, bytes) or not schema["minBytes"] <= len(value) <= schema["maxBytes"]:
        yield jsonschema.ValidationError(f"{value!r} is no bin of this length")


def is_integer(checker, value):
    return isinstance(value, int) and not isinstance(value, bool)


def schema_of(direction):
    """Return a validator of the headers of one direction, which reads `msgpackType` as the file describes it."""
    base = jsonschema.Draft202012Validator
    types = base.TYPE_CHECKER.redefine("integer", is_integer)
    kind = jsonschema.validators.extend(base, {"msgpackType": check_bin}, type_checker=types)
    return kind({"$defs": SCHEMA["$defs"], **SCHEMA["directions"][direction]})


@pytest.mark.parametrize("tool", [protocol_schema, protocol_vectors])
def test_a_generated_file_is_up_to_date(tool):
    assert tool.PATH.read_text() == tool.render(), f"run `python -m {tool.__name__}`"


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=name)
def test_a_valid_header_is_decoded_and_encoded(vector):
    header = bytes.fromhex(vector["header"])
    message = DECODERS[vector["direction"]](header)
    again = encode(message)
    if vector["encoded"]:
        assert again == header
    decoded = {"type": message.__struct_config__.tag, **msgspec.structs.asdict(message)}
    assert protocol_vectors.to_json(decoded) == vector["fields"]


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=name)
def test_an_invalid_header_is_rejected_with_its_code_and_id(vector):
    with pytest.raises(ProtocolError) as caught:
        DECODERS[vector["direction"]](bytes.fromhex(vector["header"]))
    assert caught.value.code == vector["error"]
    assert (caught.value.request_id or b"").hex() == (vector["request_id"] or "")


@pytest.mark.parametrize("direction", DECODERS)
def test_each_message_has_a_vector(direction):
    union = protocol_schema.DIRECTIONS[direction]
    types = {each["fields"]["type"] for each in VECTORS["valid"] if each["direction"] == direction}
    assert types == {kind.__struct_config__.tag for kind in get_args(union)}


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=name)
def test_the_schema_accepts_a_valid_header(vector):
    schema_of(vector["direction"]).validate(msgpack.unpackb(bytes.fromhex(vector["header"])))


UNREADABLE_AS_JSON = {"NaN", "a cost of NaN", "a name with a line feed"}
"""JSON has no NaN, and `\\Z` is no end in the regular expressions of JSON schema."""


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=name)
def test_the_schema_rejects_an_invalid_header(vector):
    try:
        fields = msgpack.unpackb(bytes.fromhex(vector["header"]))
    except ValueError:
        return  # no msgpack at all
    if vector["name"] not in UNREADABLE_AS_JSON:
        assert not schema_of(vector["direction"]).is_valid(fields)
