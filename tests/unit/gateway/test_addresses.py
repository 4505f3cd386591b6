"""The addresses that webhooks may reach."""

import ipaddress

import pytest

from imagegen_gateway.core.addresses import check_webhook_url, is_allowed

PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "2002:0a00:0001::1",
    "::10.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b:1::10.0.0.1",
    "fec0::1",
    "5f00::1",
    "192.0.0.8",
    "192.88.99.1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_allowed(address):
    assert not is_allowed(ipaddress.ip_address(address), ())


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:4700::1111", "::ffff:93.184.216.34", "64:ff9b::8.8.8.8"]
)
def test_public_addresses_are_allowed(address):
    assert is_allowed(ipaddress.ip_address(address), ())


def test_networks_of_the_operator_are_allowed():
    allowed = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fc00::/7"))
    assert is_allowed(ipaddress.ip_address("10.1.2.3"), allowed)
    assert is_allowed(ipaddress.ip_address("::ffff:10.1.2.3"), allowed)
    assert is_allowed(ipaddress.ip_address("fc00::1"), allowed)
    assert not is_allowed(ipaddress.ip_address("127.0.0.1"), allowed)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/hook?a=1",
        "https://xn--bcher-kva.example./%C3%A4",
        "http://my_host",
        "http://93.184.216.34:8080",
        "http://[2606:4700::1111]/",
    ],
)
def test_valid_urls_are_accepted(url):
    assert check_webhook_url(url, ()) == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org", "expected an http or https URL, got 'ftp://example.org'"),
        ("http://", "expected an http or https URL"),
        ("http://example.org:99999", "expected an http or https URL"),
        ("http://[::1", "expected an http or https URL"),
        ("http://example.org/a b", "expected an http or https URL"),
        ("http://user:secret@example.org/", "expected a URL without a user and a password"),
        ("http://127.0.0.1/", "expected a public address, got 127.0.0.1"),
        (
            "http://b\u00fccher.example/",
            "expected a URL in ASCII: percent-encode its path, and write its host as xn--",
        ),
        ("http://example.org/b\u00fccher", "expected a URL in ASCII"),
        ("http://a..b/", "expected a host name or an IP address, got 'a..b'"),
        ("http://" + 64 * "a" + ".example/", "expected a host name or an IP address"),
        ("http://" + 64 * "aaa." + "a/", "expected a host name or an IP address"),
        ("http://a,b/", "expected a host name or an IP address, got 'a,b'"),
        ("http://[fe80::1%25eth0]/", "expected a public address, got fe80::1%25eth0"),
    ],
)
def test_invalid_urls_are_rejected(url, message):
    with pytest.raises(ValueError, match="expected") as caught:
        check_webhook_url(url, ())
    assert str(caught.value).startswith(message)
