"""Parsing of request bodies."""

import pytest
from starlette.datastructures import FormData, Headers, UploadFile

from imagegen_gateway import bodies
from imagegen_gateway.errors import ApiError

TWICE = b"".join(
    b'--x\r\nContent-Disposition: form-data; name="mask"; filename="%d"\r\n\r\ndata\r\n' % number
    for number in (1, 2)
)
FORM = TWICE + b"--x--\r\n"


def test_the_files_of_a_rejected_form_are_closed(monkeypatch):
    parsed: list[FormData] = []

    def check(form):
        parsed.append(form)
        return check_fields(form)

    check_fields = bodies.check_fields
    monkeypatch.setattr(bodies, "check_fields", check)
    with pytest.raises(ApiError, match="mask: expected one image, got 2 fields"):
        bodies._parse_fields(Headers({"content-type": "multipart/form-data; boundary=x"}), FORM)
    files = [value for _, value in parsed[0].multi_items() if isinstance(value, UploadFile)]
    assert [file.file.closed for file in files] == [True, True]
