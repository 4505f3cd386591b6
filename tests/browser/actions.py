"""User actions on the page."""

from playwright.sync_api import expect

SLOW = 1000
"""A number of steps that takes longer than any test needs."""


def expand_options(page):
    """Expand the options if they are collapsed."""
    if not page.get_by_label("Steps", exact=True).is_visible():
        page.locator("#options > summary").click()


def submit(page, prompt, **fields):
    """Fill in the form and submit it; return the tile of the job."""
    expand_options(page)
    for name, value in {"num_inference_steps": "", "n": "", "seed": "", **fields}.items():
        page.locator(f"#{name}").fill(str(value))
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()
    tile = page.locator(".tile", has_text=prompt)
    tile.first.wait_for()
    return tile


def submit_too_large(page, prompt):
    """Submit a size that the model rejects, bypassing the checks of the page; return the tile."""
    expand_options(page)
    page.evaluate("document.getElementById('width').max = document.getElementById('height').max = 2000")
    return submit(page, prompt, width=1024, height=1024)


def images(page, prompt):
    """Return the locator of the finished images of a prompt."""
    return page.get_by_role("button").get_by_alt_text(prompt, exact=True)


def generate(page, prompt, **fields):
    """Submit a prompt, wait until its image is visible, and return the image's locator."""
    submit(page, prompt, **fields)
    return wait_for_image(page, prompt)


def wait_for_image(page, prompt):
    """Wait until the image of a prompt is visible, and return its locator."""
    image = images(page, prompt)
    expect(image.first).to_be_visible(timeout=60_000)
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.first.element_handle())
    return image
