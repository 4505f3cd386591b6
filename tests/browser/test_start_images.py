"""Start images: their sources, the crop to the generated size, and reuse after a reload."""

import base64

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.actions import (
    captured_job,
    choose_start_image,
    expand_options,
    generate,
    images,
    png,
    press_generate,
    wait_for_image,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)
SEND_FILE = """([kind, base64, type]) => {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "image.png", { type }));
    const init = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
    if (kind === "paste") document.body.dispatchEvent(new ClipboardEvent("paste", init));
    else for (const name of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(name, init));
}"""


def halves(width, height):
    """Return an image that is red on the left and blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def send_file(page, kind, data, media_type="image/png"):
    """Drop or paste a file on the page's body."""
    page.evaluate(SEND_FILE, [kind, base64.b64encode(data).decode(), media_type])


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_is_dropped_anywhere_or_pasted(page, kind):
    send_file(page, kind, png(halves(640, 640))["buffer"])
    expect(page.locator("#start-size")).to_have_text("64 × 64")
    expect(page.locator("#drop")).to_be_hidden()
    with captured_job(page) as job:
        press_generate(page)
    assert (job["image"].size, job["size"]) == ((64, 64), "64x64")


def test_the_start_image_is_fitted_to_the_model(page):
    choose_start_image(page, halves(640, 480))
    expect(page.locator("#start-size")).to_have_text("72 × 56, cropped from 640 × 480")
    expect(page.get_by_label("Width", exact=True)).to_have_attribute("placeholder", "72")
    canvas = page.locator("#start-canvas")
    assert (canvas.get_attribute("width"), canvas.get_attribute("height")) == ("72", "56")
    with captured_job(page) as job:
        press_generate(page)
    assert (job["image"].size, job["size"]) == ((72, 56), "72x56")


def test_the_crop_has_the_chosen_size_and_position(page):
    choose_start_image(page, halves(256, 64))
    page.get_by_label("Aspect ratio").select_option("1:1")
    expect(page.locator("#start-size")).to_have_text("64 × 64, cropped from 256 × 64")
    for position, colour in (("0", RED), ("1", BLUE)):
        page.get_by_label("Crop position").fill(position)
        with captured_job(page) as job:
            press_generate(page)
        assert job["image"].size == (64, 64)
        assert {job["image"].getpixel(point) for point in ((1, 1), (62, 62))} == {colour}


def test_files_that_are_no_images_are_rejected_in_words(page):
    send_file(page, "drop", b"text", "text/plain")
    expect(page.locator("#problem")).to_contain_text("not an image that the browser can read")
    page.locator("#prompt").fill("a")
    expect(page.locator("#problem")).to_be_hidden()


def test_a_start_image_and_its_mask_survive_a_reload(page):
    choose_start_image(page, halves(64, 64))
    page.get_by_role("button", name="Paint a mask").click()
    page.get_by_role("button", name="Invert").click()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("button", name="Edit the mask")).to_be_visible()
    page.wait_for_function(
        """async () => {
            const { HistoryStore } = await import("./static/history_store.js");
            return (await new HistoryStore(() => {}).inputs(sessionStorage.getItem("imagegen-tab")))?.mask;
        }"""
    )
    page.reload()
    expect(page.get_by_role("button", name="Edit the mask")).to_be_visible(timeout=60_000)
    with captured_job(page) as job:
        press_generate(page)
    assert job["image"].getpixel((1, 1)) == RED
    assert job["mask"].getpixel((1, 1)) == (255, 255, 255)


def test_varying_an_image_after_a_reload_keeps_its_start_image(page):
    choose_start_image(page, halves(64, 64))
    expand_options(page)
    page.get_by_label("Strength", exact=True).fill("0.5")
    generate(page, "a varied square")
    page.get_by_role("button", name="Remove image").click()
    page.reload()
    wait_for_image(page, "a varied square").first.click()
    with captured_job(page) as job:
        page.get_by_role("button", name="Vary the seed").click()
    assert job["image"].getpixel((1, 1)) == RED
    assert job["image"].getpixel((62, 1)) == BLUE
    assert (job["strength"], job["prompt"]) == (0.5, "a varied square")
    assert "seed" not in job
    expect(images(page, "a varied square")).to_have_count(1)


def test_varying_an_image_whose_start_image_is_lost_says_so(page):
    choose_start_image(page, halves(64, 64))
    generate(page, "a lost square")
    page.evaluate(
        """async () => {
            const { HistoryStore } = await import("./static/history_store.js");
            const store = new HistoryStore(() => {});
            for (const { id } of await store.entries()) await store.deleteInputs(id);
        }"""
    )
    images(page, "a lost square").first.click()
    page.get_by_role("button", name="Vary the seed").click()
    expect(page.locator("#problem")).to_contain_text("The start image of this request is no longer stored.")
    expect(page.locator("#generate")).to_be_enabled()
    expect(images(page, "a lost square")).to_have_count(1)


def test_sizes_keep_the_area_and_the_ranges_of_the_model(page):
    sizes = page.evaluate(
        """async () => {
            const { fitSize } = await import("./static/geometry.js");
            const range = { default: 512, minimum: 64, maximum: 768, multiple_of: 64 };
            const model = { width: range, height: range };
            return [1, 16 / 9, 4, 100, 1 / 100].map((ratio) => fitSize(ratio, model));
        }"""
    )
    assert [(size["width"], size["height"]) for size in sizes] == [
        (512, 512),
        (704, 384),
        (768, 192),
        (768, 64),
        (64, 768),
    ]
