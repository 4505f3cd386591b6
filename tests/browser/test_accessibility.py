"""The page for everybody: any width, light or dark, without a mouse, read out; and nobody else's scripts."""

import re
import urllib.request

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.actions import SLOW, ask_for, ask_for_too_much, make, pictures, unfold
from tests.browser.conftest import NARROW, WIDE
from tools.browser import start_gateway


def serious(page):
    """Return what axe finds that keeps people out."""
    found = Axe().run(page).response["violations"]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found if one["impact"] != "minor"]


@pytest.mark.parametrize("viewport", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_axe_finds_nothing(new_page, gateway, viewport, color_scheme):
    page = new_page(gateway, viewport=viewport, color_scheme=color_scheme)
    page.locator(".gpu .state.ready").wait_for()
    assert serious(page) == []
    unfold(page)
    picture = make(page, "an orange cross")
    tile = ask_for(page, "a slow one", num_inference_steps=SLOW)
    expect(tile).to_contain_text("Step", timeout=60_000)
    page.get_by_text("More", exact=True).click()
    assert serious(page) == []
    tile.get_by_role("button", name="Cancel").click()
    ask_for_too_much(page, "a refused one")
    page.locator(".failed").wait_for()
    page.locator("#prompt").fill("")
    page.get_by_role("button", name="Generate").click()
    assert serious(page) == []
    picture.first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert serious(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="API key").click()
    assert serious(page) == []


@pytest.mark.parametrize("width", [375, 800, 1366, 1920])
def test_nothing_is_cut_off(new_page, gateway, width):
    page = new_page(gateway, viewport={"width": width, "height": 812})
    page.locator(".gpu .state.ready").wait_for()
    for shown in (page.get_by_label("Prompt", exact=True), page.get_by_role("button", name="Generate")):
        expect(shown).to_be_in_viewport(ratio=1)
    unfold(page)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Steps").scroll_into_view_if_needed()
    expect(page.get_by_role("button", name="Generate")).to_be_in_viewport(ratio=1)
    make(page, f"a star with {'a very long description ' * 9}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_is_enough(page):
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the prompt")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("a ring by hand")
    page.keyboard.press("Control+Enter")
    picture = pictures(page, "a ring by hand")
    expect(picture).to_be_visible(timeout=60_000)
    frame = page.locator("button.frame").first
    for _ in range(40):
        if frame.evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(frame).to_be_focused()
    assert frame.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(frame).to_be_focused()


def test_a_prompt_is_text_wherever_it_is_shown(page):
    prompt = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"
    make(page, prompt).first.click()
    expect(page.locator("#detail-prompt")).to_have_text(prompt)
    assert page.locator("b").count() == 0
    assert page.title() == "imagegen"


def test_progress_is_read_out(page):
    said = page.get_by_role("status")
    expect(said).to_have_attribute("aria-live", "polite")
    make(page, "a spoken circle")
    expect(said).to_have_text("a spoken circle: is done")


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_inline_script(new_page, fleet, gateway, tmp_path):
    with urllib.request.urlopen(gateway) as answer:
        policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", text)
    url = start_gateway(fleet, tmp_path, name="watched")
    page = new_page("about:blank")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.locator(".gpu .state.ready").wait_for()
    assert asked
    assert all(one.startswith(f"{url}/") for one in asked), asked
    page.context.close()
    assert fleet.terminate("watched") == 0
