"""What the page looks like, drawn into out/screenshots/: `page.png` and `page-dark.png` there are the README's."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.actions import SLOW, ask_for, made
from tests.browser.conftest import NARROW
from tools.demo import PROMPTS
from tools.shapes import drawing, grade

OUT = Path(__file__).parents[2] / "out" / "screenshots"
ROOMY = {"width": 1680, "height": 1130}
"""Three rows of three pictures, between the form and the fleet."""
MADE = dict.fromkeys(PROMPTS[:9], 20)
GROWING = {
    "a white star on a red background": 150,
    "a yellow circle on a blue background": 150,
    "a white cross on a purple background": 150,
    "a blue ring on an orange background": 240,
    "a yellow triangle on a black background": SLOW,
}
"""Prompts and their steps: three that can be watched, one more that there is room for, and one that waits."""
STAND_STILL = """() => {
    const watched = [...document.querySelectorAll(".tile")].slice(2, 5);
    const done = watched.map((tile) => Number(tile.querySelector(".bar")?.ariaValueNow ?? 100));
    if (Math.min(...done) < 85 || !watched.every((tile) => tile.querySelector("img"))) return false;
    Object.defineProperty(document, "hidden", { value: true });
    document.dispatchEvent(new Event("visibilitychange"));
    return true;
}"""
"""Once each of the three shows something, the page is told that it is hidden: it follows nothing then."""
ROUND = 5
"""Pixels at the edge of a picture, whose corners are round."""


@pytest.fixture(scope="module")
def gpus():
    """A fleet, to be looked at."""
    return 2


@pytest.fixture
def page(new_page, gateway):
    """A page with pictures on it."""
    page = new_page(gateway, ROOMY)
    expect(page.locator(".gpu .state.ready")).to_have_count(2)
    ask_for_all(page, MADE)
    for prompt in MADE:
        made(page, prompt)
    return page


def ask_for_all(page, steps):
    """Ask for a picture of each prompt, and leave the form as it was."""
    for seed, (prompt, count) in enumerate(steps.items()):
        ask_for(page, prompt, seed=seed, num_inference_steps=count)
    for field in ("seed", "num_inference_steps"):
        page.locator(f"#{field}").fill("")


def draw(page, name, scheme, full_page=False):
    """Draw the page into a file; return the picture."""
    page.emulate_media(color_scheme=scheme)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.wait_for_function("() => [...document.images].every((image) => image.complete)")
    OUT.mkdir(parents=True, exist_ok=True)
    shot = Image.open(BytesIO(page.screenshot(path=OUT / name, full_page=full_page)))
    assert shot.width == page.viewport_size["width"], "nothing stands out at the side"
    ground = shot.convert("L").getpixel((2, shot.height - 3))
    assert ground > 160 if scheme == "light" else ground < 90
    return shot


def cut_out(shot, element):
    """Return the part of a picture of the page where an element is."""
    box = element.bounding_box()
    left, top = round(box["x"]) + ROUND, round(box["y"]) + ROUND
    right, bottom = round(box["x"] + box["width"]) - ROUND, round(box["y"] + box["height"]) - ROUND
    assert 0 <= left < right <= shot.width
    assert 0 <= top < bottom <= shot.height
    return shot.crop((left, top, right, bottom))


def seen(shot, element):
    """Say what is seen there, as a prompt would."""
    seen = grade.measure(cut_out(shot, element))
    return drawing.plain_caption(drawing.Spec(seen.shape, seen.foreground, seen.background))


def colours(shot, element):
    """Count the colours there."""
    part = cut_out(shot, element)
    return len(part.getcolors(part.width * part.height))


def test_pictures_in_light_and_dark_wide_and_narrow(page):
    prompt = "a yellow star on a purple background"
    made(page, prompt).click()
    expect(page.locator("#detail")).to_be_visible()
    shot = draw(page, "page-dark.png", "dark")
    assert seen(shot, page.locator("#detail-image")) == prompt
    page.keyboard.press("Escape")
    page.set_viewport_size(NARROW)
    for scheme in ("light", "dark"):
        shot = draw(page, f"page-narrow-{scheme}.png", scheme, full_page=True)
        for prompt in MADE:
            assert seen(shot, made(page, prompt)) == prompt


def test_a_fleet_at_work(page):
    ask_for_all(page, GROWING)
    page.wait_for_function(STAND_STILL)
    shot = draw(page, "page.png", "light")
    for prompt in list(MADE)[-4:]:
        assert seen(shot, made(page, prompt)) == prompt
    *watched, _, last = (page.locator(".tile", has_text=prompt) for prompt in GROWING)
    for tile in watched:
        assert colours(shot, tile.locator(".frame")) > 1000, "what it will be, if not what it is"
    assert colours(shot, last.locator(".frame")) > 1, "how long, or how far"
    last.get_by_role("button", name="Cancel").click()
    expect(last.locator(".words")).to_have_text("Cancelled")
