"""A browser that looks at the page of a gateway, before a fleet of real processes; skipped where there is none."""

from contextlib import ExitStack

import pytest

from imagegen_client import Client
from tests import programs
from tools.browser import CHROMIUM, SHAPES, open_browser, start_gateway
from tools.fleet import Fleet

BROKER = ("--heartbeat-interval", "0.2", "--liveness", "25")
"""Five seconds until a worker that is killed counts as dead."""
SMALL = ("--max-batch-size", "2", "--capacity", "2")
"""A worker that is soon full: what comes next waits in the broker's queue."""
WIDE, NARROW = {"width": 1920, "height": 1080}, {"width": 375, "height": 812}
PATIENCE_MS = 60_000


def pytest_collection_modifyitems(items):
    """Skip what needs a browser where none is installed."""
    if CHROMIUM.exists():
        return
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=programs.reason("chromium")))


@pytest.fixture(scope="module")
def browser():
    """Chromium, for all tests of a file: while it is open, this thread can run no other event loop."""
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def gpus():
    """How many workers there are: a file may say another number."""
    return 1


@pytest.fixture(scope="module")
def fleet(browser, gpus, tmp_path_factory):
    """A broker and workers that draw with the embedded model, for all tests of a file."""
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
    """Open pages, each in a browser profile of its own; whatever a script complains of fails the test."""
    complaints = []
    with ExitStack() as stack:

        def open_page(url, viewport=WIDE, color_scheme="light"):
            context = browser.new_context(viewport=viewport, color_scheme=color_scheme, reduced_motion="reduce")
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: _note(message, complaints))
            page.goto(url)
            return page

        yield open_page
    assert not complaints


def _note(message, complaints):
    # An answer that is an error is no mistake of the page; Chromium notes it all the same.
    if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
        complaints.append(message.text)


@pytest.fixture
def page(new_page, gateway):
    """A wide page, which has heard of the fleet."""
    page = new_page(gateway)
    page.locator(".gpu .state.ready").wait_for()
    return page
