"""The mask editor: brush, tools, files, touch and keyboard, and inpainting."""

import re

import pytest
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import expect

from tests.browser.actions import captured_job, choose_start_image, drag_with_finger, generate, png, press_generate

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


@pytest.fixture
def editor(page):
    """A page with an open mask editor for a square image."""
    return open_editor(page)


def open_editor(page):
    """Choose a start image and open the editor."""
    choose_start_image(page, Image.new("RGB", (64, 64), "gray"))
    page.get_by_role("button", name="Paint a mask").click()
    expect(page.get_by_role("dialog", name="Mask")).to_be_visible()
    return page


def at(page, x, y):
    """Return the coordinates on the page of a point of the image, 0 to 1 in both directions."""
    box = page.locator("#mask-canvas").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def paint(page, *points):
    """Paint a stroke with the mouse."""
    page.mouse.move(*at(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*at(page, *point))
    page.mouse.up()


def sent_mask(page):
    """Close the editor, and return the mask that is sent with a request; None without a mask."""
    page.get_by_role("button", name="Done").click()
    with captured_job(page) as job:
        press_generate(page)
    return job.get("mask")


def tool(page, name):
    """Press a button of the editor."""
    page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()


def test_a_stroke_is_painted_and_partly_erased(editor):
    paint(editor, (0.1, 0.5), (0.9, 0.5))
    tool(editor, "Erase")
    paint(editor, (0.9, 0.5))
    mask = sent_mask(editor)
    assert mask.size == (64, 64)
    assert [mask.getpixel(point) for point in ((6, 32), (32, 32), (58, 32), (32, 5))] == [
        WHITE,
        WHITE,
        BLACK,
        BLACK,
    ]


def test_the_brush_has_the_chosen_size(editor):
    editor.get_by_label("Brush").fill("80")
    paint(editor, (0.5, 0.5))
    mask = sent_mask(editor)
    assert [mask.getpixel((x, 32)) for x in (3, 8, 55, 60)] == [BLACK, WHITE, WHITE, BLACK]


def test_strokes_are_undone_redone_inverted_and_cleared(editor):
    undo, redo = (editor.get_by_role("dialog").get_by_role("button", name=name) for name in ("Undo", "Redo"))
    expect(undo).to_be_disabled()
    paint(editor, (0.5, 0.5))
    undo.click()
    expect(undo).to_be_disabled()
    redo.click()
    expect(redo).to_be_disabled()
    tool(editor, "Invert")
    mask = sent_mask(editor)
    assert [mask.getpixel(point) for point in ((32, 32), (2, 2))] == [BLACK, WHITE]
    editor.get_by_role("button", name="Edit the mask").click()
    tool(editor, "Clear")
    assert sent_mask(editor) is None
    expect(editor.get_by_role("button", name="Paint a mask")).to_be_visible()


def test_a_mask_is_painted_with_the_keyboard(editor):
    expect(editor.locator("#mask-canvas")).to_be_focused()
    editor.keyboard.press("Space")
    for _ in range(9):
        editor.keyboard.press("Shift+ArrowRight")
    editor.keyboard.press("e")
    expect(editor.get_by_role("button", name="Erase")).to_have_attribute("aria-pressed", "true")
    editor.keyboard.press("Space")
    editor.keyboard.press("i")
    editor.keyboard.press("Control+z")
    editor.keyboard.press("Escape")
    expect(editor.get_by_role("dialog")).to_be_hidden()
    with captured_job(editor) as job:
        press_generate(editor)
    assert [job["mask"].getpixel((x, 32)) for x in (32, 40, 61, 20)] == [WHITE, WHITE, BLACK, BLACK]


def test_a_mask_is_painted_with_a_finger(new_page, gateway):
    page = new_page(gateway, phone=True)
    page.locator(".gpu .state.ready").wait_for()
    open_editor(page)
    drag_with_finger(page, at(page, 0.2, 0.5), at(page, 0.5, 0.5), at(page, 0.8, 0.5))
    mask = sent_mask(page)
    assert [mask.getpixel(point) for point in ((13, 32), (32, 32), (51, 32), (32, 10))] == [WHITE] * 3 + [BLACK]


def strip(mode, left, right):
    """Return a square image whose left quarter differs from the rest."""
    image = Image.new(mode, (32, 32), left)
    image.paste(right, (8, 0, 32, 32))
    return image


def choose_mask(page, image):
    """Choose a mask file in the open editor."""
    page.locator("#mask-file").set_input_files(png(image))
    expect(page.locator("#mask-undo")).to_be_enabled()


@pytest.mark.parametrize(
    "file",
    [strip("L", 0, 255), strip("RGBA", (255, 255, 255, 255), (0, 0, 0, 0))],
    ids=["black and white", "transparent"],
)
def test_a_mask_is_read_from_a_file(editor, file):
    choose_mask(editor, file)
    mask = sent_mask(editor)
    assert [mask.getpixel((x, 32)) for x in (5, 58)] == [BLACK, WHITE]


def test_a_mask_file_of_another_shape_is_rejected(editor):
    editor.locator("#mask-file").set_input_files(png(Image.new("L", (64, 16))))
    expect(editor.locator("#mask-problem")).to_contain_text("it has 64 × 16 pixels, the start image 64 × 64")
    choose_mask(editor, strip("L", 0, 255))
    expect(editor.locator("#mask-problem")).to_be_hidden()


def test_the_mask_moves_with_the_crop(page):
    choose_start_image(page, Image.new("RGB", (128, 64)))
    page.get_by_label("Aspect ratio").select_option("1:1")
    page.get_by_label("Crop position").fill("0")
    page.get_by_role("button", name="Paint a mask").click()
    paint(page, (0.25, 0.5))
    page.get_by_role("button", name="Done").click()
    page.get_by_label("Crop position").fill("0.25")
    with captured_job(page) as job:
        press_generate(page)
    assert [job["mask"].getpixel((x, 32)) for x in (2, 16)] == [WHITE, BLACK]


def test_inpainting_keeps_the_unpainted_area(page, tmp_path):
    generate(page, "a red circle on a blue background", seed=3).first.click()
    page.get_by_role("button", name="Use as start image").click()
    page.get_by_role("button", name="Paint a mask").click()
    choose_mask(page, strip("L", 0, 255))
    page.get_by_role("button", name="Done").click()
    generate(page, "a yellow star on a green background", seed=4).first.click()
    files = []
    for name in ("Download", "start.png"):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        download.value.save_as(tmp_path / name)
        files.append(Image.open(tmp_path / name).convert("RGB"))
    expect(page.locator("#viewer-parameters")).to_contain_text(re.compile("Strength"))
    difference = ImageChops.difference(*files).convert("L")
    kept, painted = (ImageStat.Stat(difference.crop(box)).mean[0] for box in ((0, 0, 12, 64), (20, 0, 64, 64)))
    assert painted > 2 * kept
