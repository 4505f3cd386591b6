"""The viewer: visible images, navigation, comparison, copies of prompt, image and code."""

import os
import subprocess
import sys

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests import programs
from tests.browser.actions import choose_start_image, drag_with_finger, generate, images
from tests.equality import same_image

LONG = "a star, " + "described at great length, " * 60
CLIPBOARD = "navigator.clipboard.readText()"
IMAGE_TYPES = "async () => (await navigator.clipboard.read()).flatMap((item) => item.types)"


def shown(page):
    """Return the locator of the image in the viewer."""
    return page.locator("#viewer-image")


@pytest.mark.parametrize("size", [(1366, 650), (1440, 900), (375, 667)], ids=str)
def test_the_image_is_visible_whatever_the_length_of_the_prompt(page, size):
    generate(page, LONG, num_inference_steps=1)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    images(page, LONG).first.click()
    expect(shown(page)).to_be_in_viewport(ratio=1)
    assert shown(page).bounding_box()["width"] > 200
    for name in ("Close", "Use again"):
        expect(page.get_by_role("dialog").get_by_role("button", name=name)).to_be_in_viewport(ratio=1)


def generate_three(page):
    """Generate three images in one job, and open the first."""
    generate(page, "a numbered star", n=3, seed=5, num_inference_steps=1)
    images(page, "a numbered star").first.click()
    expect(page.locator("#viewer-place")).to_have_text("1 of 3")


def test_keys_show_the_next_and_the_previous_image(page):
    generate_three(page)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-place")).to_have_text("2 of 3")
    expect(page.locator("#viewer-parameters")).to_contain_text("Seed6")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-place")).to_have_text("3 of 3")
    expect(page.get_by_role("button", name="Next image")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-place")).to_have_text("2 of 3")
    page.keyboard.press("Escape")
    expect(page.locator("button.frame").nth(1)).to_be_focused()


def test_swipes_show_the_next_and_the_previous_image(new_page, gateway):
    page = new_page(gateway, phone=True)
    page.locator(".gpu .state.ready").wait_for()
    generate_three(page)
    drag_with_finger(page, (300, 200), (200, 205), (80, 210))
    expect(page.locator("#viewer-place")).to_have_text("2 of 3")
    drag_with_finger(page, (80, 200), (200, 205), (300, 210))
    expect(page.locator("#viewer-place")).to_have_text("1 of 3")


def test_an_image_is_marked_and_removed(page):
    generate_three(page)
    page.get_by_role("button", name="Favourite", exact=True).click()
    expect(page.locator("#viewer-favourite")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-favourite")).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Remove from the history").click()
    expect(images(page, "a numbered star")).to_have_count(2)
    page.get_by_role("button", name="Undo").click()
    expect(images(page, "a numbered star")).to_have_count(3)


def generate_from_start(page):
    """Generate an image from a green start image, and open it."""
    choose_start_image(page, Image.new("RGB", (64, 64), (0, 160, 0)))
    generate(page, "a white ring's picture on a red background", seed=9, num_inference_steps=5).first.click()


def test_an_image_is_compared_with_its_start_image(page):
    generate_from_start(page)
    compare = page.get_by_label("Start image", exact=True).and_(page.locator("#compare"))
    expect(page.locator("#viewer-before")).to_be_hidden()
    compare.fill("50")
    expect(page.locator("#viewer-before")).to_be_visible()
    box = shown(page).bounding_box()
    left, right = (
        page.evaluate(
            "([x, y]) => getComputedStyle(document.getElementById('viewer-before')).clipPath",
            [box["x"] + dx, box["y"]],
        )
        for dx in (5, box["width"] - 5)
    )
    assert left == right == "inset(0px 50% 0px 0px)"
    compare.press("ArrowRight")
    expect(page.locator("#viewer-place")).to_have_text("1 of 1")


def test_prompt_and_image_are_copied(page):
    generate(page, "a copied ring", num_inference_steps=1).first.click()
    page.get_by_role("button", name="Copy prompt").click()
    expect(page.locator("#viewer-note")).to_have_text("Prompt copied.")
    assert page.evaluate(CLIPBOARD) == "a copied ring"
    page.get_by_role("button", name="Copy image").click()
    expect(page.locator("#viewer-note")).to_have_text("Image copied.")
    assert "image/png" in page.evaluate(IMAGE_TYPES)


@pytest.mark.parametrize("language", ["curl", "Python"])
@pytest.mark.parametrize("from_start", [False, True], ids=["from text", "from an image"])
def test_copied_code_generates_the_image_again(page, tmp_path, language, from_start):
    if language == "curl":
        programs.require("curl", "jq")
    if from_start:
        generate_from_start(page)
        with page.expect_download() as download:
            page.get_by_role("link", name="start.png").click()
        download.value.save_as(tmp_path / "start.png")
    else:
        generate(page, "a red circle's picture", seed=9, num_inference_steps=5).first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    download.value.save_as(tmp_path / "downloaded.png")
    page.get_by_role("button", name=f"Copy as {language}").click()
    expect(page.locator("#viewer-note")).to_contain_text("copied")
    code = page.evaluate(CLIPBOARD)
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120, env=dict(os.environ))
    with Image.open(tmp_path / "image.png") as again, Image.open(tmp_path / "downloaded.png") as downloaded:
        assert again.info["parameters"] == downloaded.info["parameters"]
        assert same_image(again, downloaded)
