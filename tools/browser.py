"""A gateway over a fleet, and a browser that looks at its page, for the tests."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tools.fleet import Fleet, FleetError

CHROMIUM = Path("/usr/bin/chromium")
"""Debian's; playwright's own would be a download."""
SHAPES = ("--device", "cpu", "--torch-threads", "1")
"""What a worker needs to draw with the model that comes with it."""


def start_gateway(fleet: Fleet, state_folder: Path, *arguments: str, name: str = "gateway") -> str:
    """Start `imagegen-gateway` on a free port before the fleet's first broker; return its URL."""
    words = ("--http", "127.0.0.1:0", "--broker", fleet.frontend, "--state-folder", str(state_folder))
    process = fleet.spawn(name, ["imagegen-gateway", *words, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("http="):
        raise FleetError(f"{name} ended with status {process.wait()}; its log says why")
    return line.strip().removeprefix("http=")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium without a window."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start as root, as in containers; it sees our own page only.
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
