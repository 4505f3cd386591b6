"""Screenshots of the page in out/screenshots/; the README and the guide show some of them."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.actions import SLOW, submit, wait_for_image
from tests.browser.conftest import NARROW
from tools.demo import PROMPTS
from tools.shapes import drawing, grade

OUT = Path(__file__).parents[2] / "out" / "screenshots"
VIEWPORT = {"width": 1680, "height": 1130}
"""Room for three rows of three images between the form and the fleet."""
FINISHED = dict.fromkeys(PROMPTS[:9], 20)
RUNNING = {
    "a white star on a red background": 150,
    "a yellow circle on a blue background": 150,
    "a white cross on a purple background": 150,
    "a blue ring on an orange background": 240,
    "a yellow triangle on a black background": SLOW,
}
"""Prompts and steps: three running jobs with previews, one more running job, and a queued one."""
FREEZE = """() => {
    const watched = [...document.querySelectorAll(".tile")].slice(2, 5);
    const done = watched.map((tile) => Number(tile.querySelector(".bar")?.ariaValueNow ?? 100));
    if (Math.min(...done) < 85 || !watched.every((tile) => tile.querySelector("img"))) return false;
    Object.defineProperty(document, "hidden", { value: true });
    document.dispatchEvent(new Event("visibilitychange"));
    return true;
}"""
"""When all three jobs show a preview, make the page believe that it is hidden, so that it stops updating."""
ROUND = 5
"""Pixels to cut off at the edges of an image with round corners."""


@pytest.fixture(scope="module")
def gpus():
    """Two workers."""
    return 2


@pytest.fixture
def page(new_page, gateway):
    """A page with images."""
    page = new_page(gateway, VIEWPORT)
    expect(page.locator(".gpu .state.ready")).to_have_count(2)
    submit_all(page, FINISHED)
    for prompt in FINISHED:
        wait_for_image(page, prompt)
    return page


def submit_all(page, steps):
    """Submit all prompts, and clear the form."""
    for seed, (prompt, count) in enumerate(steps.items()):
        submit(page, prompt, seed=seed, num_inference_steps=count)
    for field in ("seed", "num_inference_steps"):
        page.locator(f"#{field}").fill("")


def screenshot(page, name, scheme, full_page=False):
    """Save a screenshot; return it."""
    page.emulate_media(color_scheme=scheme)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.wait_for_function("() => [...document.images].every((image) => image.complete)")
    OUT.mkdir(parents=True, exist_ok=True)
    shot = Image.open(BytesIO(page.screenshot(path=OUT / name, full_page=full_page)))
    assert shot.width == page.viewport_size["width"], "the page does not overflow"
    ground = shot.convert("L").getpixel((2, shot.height - 3))
    assert ground > 160 if scheme == "light" else ground < 90
    return shot


def cut_out(shot, element):
    """Return the part of a screenshot that shows an element."""
    box = element.bounding_box()
    left, top = round(box["x"]) + ROUND, round(box["y"]) + ROUND
    right, bottom = round(box["x"] + box["width"]) - ROUND, round(box["y"] + box["height"]) - ROUND
    assert 0 <= left < right <= shot.width
    assert 0 <= top < bottom <= shot.height
    return shot.crop((left, top, right, bottom))


def caption(shot, element):
    """Return the caption of the shape that an element shows."""
    seen = grade.measure(cut_out(shot, element))
    return drawing.plain_caption(drawing.Spec(seen.shape, seen.foreground, seen.background))


def colours(shot, element):
    """Return the number of colours of an element."""
    part = cut_out(shot, element)
    return len(part.getcolors(part.width * part.height))


def paint_mask(page):
    """Use the image in the viewer as start image, and paint over its right half."""
    page.get_by_role("button", name="Use as start image").click()
    page.get_by_role("button", name="Paint a mask").click()
    page.get_by_label("Brush").fill("45")
    box = page.locator("#mask-canvas").bounding_box()
    points = [(box["x"] + 0.75 * box["width"], box["y"] + share * box["height"]) for share in (0.3, 0.45, 0.7)]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up()


def test_images_in_all_colour_schemes_and_widths(page):
    prompt = "a yellow star on a purple background"
    wait_for_image(page, prompt).click()
    expect(page.locator("#viewer")).to_be_visible()
    shot = screenshot(page, "page-dark.png", "dark")
    assert caption(shot, page.locator("#viewer-image")) == prompt
    paint_mask(page)
    shot = screenshot(page, "page-mask.png", "dark")
    assert colours(shot, page.locator("#mask-canvas")) > 1000
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Remove image").click()
    page.set_viewport_size(NARROW)
    for scheme in ("light", "dark"):
        shot = screenshot(page, f"page-narrow-{scheme}.png", scheme, full_page=True)
        for prompt in FINISHED:
            assert caption(shot, wait_for_image(page, prompt)) == prompt


def test_running_jobs(page):
    submit_all(page, RUNNING)
    page.wait_for_function(FREEZE)
    shot = screenshot(page, "page.png", "light")
    for prompt in list(FINISHED)[-4:]:
        assert caption(shot, wait_for_image(page, prompt)) == prompt
    *watched, _, last = (page.locator(".tile", has_text=prompt) for prompt in RUNNING)
    for tile in watched:
        assert colours(shot, tile.locator(".frame")) > 1000, "a preview or an image"
    assert colours(shot, last.locator(".frame")) > 1, "the remaining time or the progress"
    last.get_by_role("button", name="Cancel").click()
    expect(last.locator(".words")).to_have_text("Cancelled")
