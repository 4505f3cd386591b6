"""The form: sizes, seed, help, its place in the window, and states of the fleet in words."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.actions import captured_job, expand_options, generate, press_generate

LUMINANCE = """element => {
    const style = getComputedStyle(element);
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    return [style.color, style.backgroundColor].map((colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
            const share = value / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    });
}"""
"""The luminances of an element's text and background, as WCAG defines them."""
SCROLLING = """() => [...document.querySelectorAll("main *")]
    .filter((element) => /auto|scroll/.test(getComputedStyle(element).overflowY))
    .filter((element) => element.scrollHeight > element.clientHeight + 1)
    .map((element) => element.className || element.id)"""
"""The elements of the page that scroll by themselves."""
GPU = {
    "worker": "gpu0", "host": "h", "gpu_id": 0, "device": "cuda", "models": [], "state": "ready",
    "current_queue_depth": 3, "running": 1, "capacity": 4, "images_per_second": [0.5],
}  # fmt: skip
FLEET = {
    "lost_for_seconds": None, "estimated_wait_seconds": 0.0, "queued_requests": 0, "gpus": [GPU],
    "models": ["builtin:shapes"], "default_model": "builtin:shapes", "models_mark": 1,
}  # fmt: skip


def test_aspect_ratios_set_the_size(page):
    aspect, width, height = (page.get_by_label(name, exact=True) for name in ("Aspect ratio", "Width", "Height"))
    aspect.select_option("16:9")
    expect(width).to_have_value("88")
    expect(height).to_have_value("48")
    page.get_by_role("button", name="Swap width and height").click()
    expect(aspect.locator("option:checked")).to_have_text("9:16")
    width.fill("128")
    expect(aspect.locator("option:checked")).to_have_text("Custom")
    aspect.select_option("Default")
    with captured_job(page) as job:
        press_generate(page)
    assert "size" not in job


def test_a_locked_seed_is_used_until_it_is_unlocked(page):
    generate(page, "a seeded star", n=2, seed=41, num_inference_steps=1)
    page.locator("#n").fill("")
    lock, seed = page.get_by_role("button", name="Lock the seed"), page.get_by_label("Seed", exact=True)
    expect(lock).to_have_attribute("aria-pressed", "true")
    lock.click()
    expect(seed).to_have_value("")
    expect(lock).to_have_attribute("aria-pressed", "false")
    lock.click()
    expect(seed).to_have_value("41")
    for _ in range(2):
        with captured_job(page) as job:
            press_generate(page)
        assert job["seed"] == 41
    lock.click()
    with captured_job(page) as job:
        press_generate(page)
    assert "seed" not in job


@pytest.mark.parametrize("name", ["Steps", "Guidance"])
def test_help_is_shown_beside_its_field(page, name):
    page.get_by_role("button", name=f"Help: {name}").press("Enter")
    text = page.locator(".help:popover-open")
    expect(text).to_be_in_viewport(ratio=1)
    page.keyboard.press("Escape")
    expect(text).to_have_count(0)


@pytest.mark.parametrize("size", [(1440, 900), (1366, 650)], ids=str)
def test_nothing_but_the_page_scrolls_and_more_opens_in_view(new_page, gateway, size):
    page = new_page(gateway, viewport={"width": size[0], "height": size[1]})
    page.locator(".gpu .state.ready").wait_for()
    assert page.evaluate(SCROLLING) == []
    page.get_by_text("More", exact=True).press("Enter")
    expect(page.get_by_label("Scheduler")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("button", name="Generate")).to_be_in_viewport(ratio=1)
    overlap = page.evaluate(
        """() => document.getElementById("scheduler").getBoundingClientRect().bottom
            - document.querySelector(".submit").getBoundingClientRect().top"""
    )
    assert overlap <= 0
    assert page.evaluate(SCROLLING) == []


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_the_button_is_readable_while_a_request_is_sent(new_page, gateway, color_scheme):
    page = new_page(gateway, color_scheme=color_scheme)
    page.locator(".gpu .state.ready").wait_for()
    held = []
    page.route("**/v1/jobs", lambda route: held.append(route))
    button = page.get_by_role("button", name=re.compile("Generate|Sending"))
    press_generate(page, "a slow upload")
    expect(button).to_have_attribute("aria-busy", "true")
    expect(button).to_have_text(re.compile(r"Sending \d+ %"))
    expect(button).to_be_disabled()
    for hover in (False, True):
        if hover:
            button.hover(force=True)
        darker, lighter = sorted(button.evaluate(LUMINANCE))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5
    held[0].abort()
    expect(button).to_have_text("Generate")


def serve_fleet(page, **changes):
    """Replace the state of the fleet."""
    page.unroute("**/fleet/events")
    body = f"event: fleet\ndata: {json.dumps({**FLEET, **changes})}\n\n"
    page.route("**/fleet/events", lambda route: route.fulfill(body=body))


def test_the_state_of_the_fleet_is_shown_in_words(page):
    banner = page.locator("#banner")
    serve_fleet(page, gpus=[], models=[])
    page.reload()
    expect(banner).to_have_text("No GPU is connected. Requests wait until one is.")
    serve_fleet(page, gpus=[{**GPU, "state": "draining"}])
    expect(banner).to_have_text("No GPU is ready. Requests wait until one is.")
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": []}))
    serve_fleet(page, models_mark=2)
    expect(banner).to_contain_text("No model available.")
    expect(page.get_by_label("Model")).to_contain_text("No model available")
    expect(page.get_by_label("Width", exact=True)).to_have_attribute("placeholder", "auto")
    page.unroute("**/v1/models")
    serve_fleet(page, models_mark=3)
    expect(banner).to_have_text("A model is available.")
    expect(banner).to_be_hidden()
    expect(page.locator(".gpu")).to_contain_text("1 image running, 2 waiting")


def test_errors_disappear_when_they_are_over(page):
    for path in ("**/fleet/events", "**/v1/jobs"):
        page.route(path, lambda route: route.abort())
    page.reload()
    expect(page.locator("#banner")).to_contain_text("Offline, retrying")
    press_generate(page, "an offline star")
    expect(page.locator("#problem")).to_have_text("The gateway does not answer.")
    page.unroute("**/v1/jobs")
    page.unroute("**/fleet/events")
    expect(page.locator("#banner")).to_have_text("The gateway is back.", timeout=30_000)
    expect(page.locator("#problem")).to_be_hidden()
    expand_options(page)
    page.get_by_label("Steps", exact=True).fill("5000")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_contain_text("Steps: a whole number")
    page.get_by_label("Steps", exact=True).fill("5")
    expect(page.locator("#problem")).to_be_hidden()
