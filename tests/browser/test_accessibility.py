"""Accessibility and security of the page: axe, narrow screens, keyboard, screen readers, scripts."""

import re
import urllib.request

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from tests.browser.actions import (
    SLOW,
    choose_start_image,
    expand_options,
    generate,
    images,
    submit,
    submit_too_large,
)
from tests.browser.conftest import NARROW, WIDE
from tools.browser import start_gateway


def serious(page):
    """Return axe's violations that are not minor."""
    violations = Axe().run(page).response["violations"]
    return [(v["id"], [node["html"] for node in v["nodes"]]) for v in violations if v["impact"] != "minor"]


@pytest.mark.parametrize("viewport", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_axe_finds_no_violations(new_page, gateway, viewport, color_scheme):
    page = new_page(gateway, viewport=viewport, color_scheme=color_scheme)
    page.locator(".gpu .state.ready").wait_for()
    assert serious(page) == []
    expand_options(page)
    image = generate(page, "an orange cross")
    tile = submit(page, "a slow one", num_inference_steps=SLOW)
    expect(tile).to_contain_text("Step", timeout=60_000)
    page.get_by_text("More", exact=True).click()
    assert serious(page) == []
    tile.get_by_role("button", name="Cancel").click()
    submit_too_large(page, "a rejected one")
    page.locator(".failed").wait_for()
    page.locator("#prompt").fill("")
    page.get_by_role("button", name="Generate").click()
    assert serious(page) == []
    image.first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert serious(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="API key").click()
    assert serious(page) == []


@pytest.mark.parametrize("phone", [True, False], ids=["phone", "wide"])
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_axe_finds_no_violations_in_the_tools(new_page, gateway, phone, color_scheme):
    page = new_page(gateway, phone=phone, color_scheme=color_scheme)
    page.locator(".gpu .state.ready").wait_for()
    expand_options(page)
    page.get_by_role("button", name="Help: Steps").click()
    assert serious(page) == []
    page.keyboard.press("Escape")
    choose_start_image(page, Image.new("RGB", (128, 64)))
    page.get_by_label("Aspect ratio").select_option("1:1")
    assert serious(page) == []
    page.get_by_role("button", name="Paint a mask").click()
    page.get_by_role("button", name="Invert").click()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.get_by_role("button", name="Done").click()
    generate(page, "a compared star").first.click()
    page.get_by_label("Start image", exact=True).and_(page.locator("#compare")).fill("50")
    page.get_by_role("button", name="Favourite", exact=True).click()
    assert serious(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear history").click()
    assert serious(page) == []
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#notice")).to_be_visible()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("width", [375, 800, 1366, 1920])
def test_the_page_fits_its_width(new_page, gateway, width):
    page = new_page(gateway, viewport={"width": width, "height": 812})
    page.locator(".gpu .state.ready").wait_for()
    for shown in (page.get_by_label("Prompt", exact=True), page.get_by_role("button", name="Generate")):
        expect(shown).to_be_in_viewport(ratio=1)
    expand_options(page)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Steps", exact=True).scroll_into_view_if_needed()
    expect(page.get_by_role("button", name="Generate")).to_be_in_viewport(ratio=1)
    generate(page, f"a star with {'a very long description ' * 9}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def tab_to(page, element):
    """Press Tab until an element has the focus."""
    for _ in range(60):
        if element.evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(element).to_be_focused()


def test_the_page_is_usable_with_the_keyboard(page):
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the prompt")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("a ring by hand")
    page.keyboard.press("Control+Enter")
    image = images(page, "a ring by hand")
    expect(image).to_be_visible(timeout=60_000)
    frame = page.locator("button.frame").first
    tab_to(page, frame)
    assert frame.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(frame).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Use as start image"))
    page.keyboard.press("Enter")
    expect(page.locator("#start-size")).to_have_text("64 × 64")
    tab_to(page, page.get_by_role("button", name="Paint a mask"))
    page.keyboard.press("Enter")
    expect(page.locator("#mask-canvas")).to_be_focused()
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit the mask")).to_be_focused()


def test_prompts_are_not_interpreted_as_html(page):
    prompt = "<img src=x onerror=\"document.title='injected'\"><b>bold</b>"
    generate(page, prompt).first.click()
    expect(page.locator("#viewer-prompt")).to_have_text(prompt)
    assert page.locator("b").count() == 0
    assert page.title() == "imagegen"


def test_progress_is_announced(page):
    status = page.get_by_role("status")
    expect(status).to_have_attribute("aria-live", "polite")
    generate(page, "an announced circle")
    expect(status).to_have_text("an announced circle: finished")


def test_the_page_has_no_external_resources_and_no_inline_scripts(new_page, fleet, gateway, tmp_path):
    with urllib.request.urlopen(gateway) as response:
        policy, text = response.headers["Content-Security-Policy"], response.read().decode()
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", text)
    url = start_gateway(fleet, tmp_path, name="watched")
    page = new_page("about:blank")
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    page.locator(".gpu .state.ready").wait_for()
    assert requested
    assert all(each.startswith(f"{url}/") for each in requested), requested
    page.context.close()
    assert fleet.terminate("watched") == 0
