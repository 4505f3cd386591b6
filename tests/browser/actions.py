"""What people do on the page."""

from playwright.sync_api import expect

SLOW = 1000
"""Steps that take a worker long enough for anything."""


def unfold(page):
    """Open the options where they are folded away."""
    if not page.get_by_label("Steps").is_visible():
        page.locator("#options > summary").click()


def ask_for(page, prompt, **fields):
    """Fill the form in and send it; return the tile that stands for it."""
    unfold(page)
    for name, value in {"num_inference_steps": "", "n": "", "seed": "", **fields}.items():
        page.locator(f"#{name}").fill(str(value))
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()
    tile = page.locator(".tile", has_text=prompt)
    tile.first.wait_for()
    return tile


def ask_for_too_much(page, prompt):
    """Send what the model refuses, past the page's own checks; return the tile."""
    unfold(page)
    page.evaluate("document.getElementById('width').max = document.getElementById('height').max = 2000")
    return ask_for(page, prompt, width=1024, height=1024)


def pictures(page, prompt):
    """Return the finished pictures of a prompt."""
    return page.get_by_role("button").get_by_alt_text(prompt, exact=True)


def make(page, prompt, **fields):
    """Have a picture made, wait until it can be seen, and return it."""
    ask_for(page, prompt, **fields)
    return made(page, prompt)


def made(page, prompt):
    """Wait until the picture of a prompt can be seen, and return it."""
    picture = pictures(page, prompt)
    expect(picture.first).to_be_visible(timeout=60_000)
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.first.element_handle())
    return picture
