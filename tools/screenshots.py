"""`python -m tools.screenshots`: draw the page of the gateway into docs/images, over a fleet on this machine."""

import re
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, ViewportSize, expect

from imagegen_client import Client
from tools.browser import SHAPES, open_browser, start_gateway
from tools.demo import PROMPTS
from tools.fleet import Fleet

OUT = Path(__file__).parents[1] / "docs" / "images"
WIDE: ViewportSize = {"width": 1680, "height": 1050}
NARROW: ViewportSize = {"width": 375, "height": 812}
SMALL = ("--max-batch-size", "2", "--capacity", "2")
SLOW_STEPS = 250
TREND_SECONDS = 40


def main() -> None:
    """Draw the page wide and light, wide and dark with a picture opened, and narrow."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Fleet(log_folder=Path(folder, "logs")) as fleet:
        fleet.start_broker()
        for index in range(2):
            fleet.start_worker(f"gpu{index}", "--gpu", str(index), *SHAPES, *SMALL)
        with Client(fleet.frontend) as client:
            fleet.wait_for_workers(client, 2)
        url = start_gateway(fleet, Path(folder, "state"))
        with open_browser() as browser:
            _wide(browser, url)
            _narrow(browser, url)


def _wide(browser: Browser, url: str) -> None:
    page = _open(browser, url, WIDE)
    for index in range(TREND_SECONDS):
        if index % 3 == 0:
            _ask(page, PROMPTS[index // 3 % len(PROMPTS)])
        page.wait_for_timeout(1000)
    _settle(page)
    _busy(page)
    page.screenshot(path=OUT / "page.png")
    _settle(page)
    page.emulate_media(color_scheme="dark")
    page.locator("button.frame").nth(6).click()
    page.locator("#detail").wait_for()
    page.wait_for_timeout(300)
    page.screenshot(path=OUT / "page-dark.png")
    page.close()


def _narrow(browser: Browser, url: str) -> None:
    page = _open(browser, url, NARROW)
    for prompt in PROMPTS[:3]:
        _ask(page, prompt)
    _settle(page)
    _ask(page, PROMPTS[3], steps=SLOW_STEPS)
    page.locator("img.preview").wait_for()
    page.evaluate("document.activeElement.blur()")
    expect(page.locator(".bar")).to_have_attribute("aria-valuenow", re.compile("^[89][0-9]$"), timeout=120_000)
    page.screenshot(path=OUT / "page-narrow.png", full_page=True)
    page.close()


def _open(browser: Browser, url: str, viewport: ViewportSize) -> Page:
    page = browser.new_context(viewport=viewport).new_page()
    page.goto(url)
    page.locator(".gpu .state.ready").first.wait_for()
    return page


def _ask(page: Page, prompt: str, steps: int | None = None) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    folded = not page.get_by_label("Steps").is_visible()
    if folded and steps is not None:
        page.locator("#options > summary").click()
    if steps is not None or not folded:
        page.get_by_label("Steps").fill("" if steps is None else str(steps))
    page.get_by_role("button", name="Generate").click()
    if folded and steps is not None:
        page.locator("#options > summary").click()
    page.wait_for_timeout(100)


def _busy(page: Page) -> None:
    """Have more asked for than runs at a time, and wait until it can be seen."""
    for index in range(6):
        _ask(page, PROMPTS[index % len(PROMPTS)], steps=SLOW_STEPS)
    page.get_by_label("Steps").fill("")
    page.locator("img.preview").nth(2).wait_for()
    page.evaluate("document.activeElement.blur()")
    oldest = page.locator(".bar").last
    expect(oldest).to_have_attribute("aria-valuenow", re.compile("^[6-9][0-9]$"), timeout=120_000)


def _settle(page: Page) -> None:
    expect(page.locator(".making")).to_have_count(0, timeout=300_000)


if __name__ == "__main__":
    main()
