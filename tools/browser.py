"""A gateway for a fleet, and a browser for its web page, for the tests."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tools.fleet import Fleet, FleetError

CHROMIUM = Path("/usr/bin/chromium")
"""Debian's Chromium; Playwright would download its own."""
SHAPES = ("--device", "cpu", "--torch-threads", "1")
"""Options of a worker with the built-in `shapes` model."""


def start_gateway(fleet: Fleet, state_folder: Path, *arguments: str, name: str = "gateway") -> str:
    """Start `imagegen-gateway` on a free port for the fleet's first broker; return its URL."""
    words = ("--http", "127.0.0.1:0", "--broker", fleet.frontend, "--state-folder", str(state_folder))
    process = fleet.spawn(name, ["imagegen-gateway", *words, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("http="):
        raise FleetError(f"{name} exited with status {process.wait()}; see its log")
    return line.strip().removeprefix("http=")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a headless Chromium."""
    with sync_playwright() as playwright:
        # The sandbox of Chromium does not start as root; the browser only opens our own page.
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
