"""Fixtures: a browser, and a gateway with a fleet of real processes. Skipped without Chromium."""

from contextlib import ExitStack

import pytest
from playwright.sync_api import expect

from imagegen_client import Client
from tests import programs
from tools.browser import CHROMIUM, SHAPES, open_browser, start_gateway
from tools.fleet import Fleet

BROKER = ("--heartbeat-interval", "0.2", "--liveness", "25")
"""A killed worker counts as dead after five seconds."""
SMALL = ("--max-batch-size", "2", "--capacity", "2")
"""A worker that is full after two requests, so that further ones wait in the broker's queue."""
WIDE, NARROW = {"width": 1920, "height": 1080}, {"width": 375, "height": 812}
TIMEOUT_MS = 60_000
expect.set_options(timeout=TIMEOUT_MS / 2)


def pytest_collection_modifyitems(items):
    """Skip the tests that need a browser if none is installed."""
    if CHROMIUM.exists():
        return
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=programs.reason("chromium")))


@pytest.fixture(scope="module")
def browser():
    """Chromium, for all tests of a file; while it is open, this thread can't run another event loop."""
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def gpus():
    """Number of workers; a test file can override it."""
    return 1


@pytest.fixture(scope="module")
def fleet(browser, gpus, tmp_path_factory):
    """A broker and workers with the embedded model, for all tests of a file."""
    with Fleet(log_folder=tmp_path_factory.mktemp("logs")) as fleet:
        fleet.start_broker(*BROKER)
        for index in range(gpus):
            fleet.start_worker(f"gpu{index}", "--gpu", str(index), *SHAPES, *SMALL)
        with Client(fleet.frontend) as client:
            fleet.wait_for_workers(client, gpus)
        yield fleet


@pytest.fixture(scope="module")
def gateway(fleet, tmp_path_factory):
    """The URL of a gateway without keys, for all tests of a file."""
    return start_gateway(fleet, tmp_path_factory.mktemp("state"))


@pytest.fixture
def new_page(browser):
    """A function that opens a page in a new browser profile or in a `context`; errors of scripts fail the test."""
    errors = []
    with ExitStack() as stack:

        def open_page(url, viewport=WIDE, color_scheme="light", phone=False, context=None):
            if context is None:
                mobile = {"has_touch": phone, "is_mobile": phone, "viewport": NARROW if phone else viewport}
                context = browser.new_context(color_scheme=color_scheme, reduced_motion="reduce", **mobile)
                context.grant_permissions(["clipboard-read", "clipboard-write"])
                stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(TIMEOUT_MS)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: _collect(message, errors))
            page.goto(url)
            return page

        yield open_page
    assert not errors


def _collect(message, errors):
    # Chromium also reports error responses, which are not errors of the page.
    if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
        errors.append(message.text)


@pytest.fixture
def page(new_page, gateway):
    """A wide page that shows the fleet."""
    page = new_page(gateway)
    page.locator(".gpu .state.ready").wait_for()
    return page
