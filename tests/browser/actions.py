"""User actions on the page."""

import base64
from contextlib import contextmanager
from io import BytesIO

from PIL import Image
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
    page.evaluate(
        """() => {
            for (const name of ["width", "height"]) {
                Object.defineProperty(document.getElementById(name), "validity", { value: { valid: true } });
            }
        }"""
    )
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


@contextmanager
def captured_job(page):
    """Capture the body of the job that the block submits; the gateway does not receive it. Images are decoded."""
    body = {}
    page.route("**/v1/jobs", lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    with page.expect_request(
        lambda request: request.method == "POST" and request.url.endswith("/v1/jobs")
    ) as sent:
        yield body
    body.update(sent.value.post_data_json)
    for name in ("image", "mask"):
        if name in body:
            body[name] = Image.open(BytesIO(base64.b64decode(body[name].partition(",")[2]))).convert("RGB")
    expect(page.locator("#generate")).to_have_attribute("aria-busy", "false")
    page.unroute("**/v1/jobs")


def png(image):
    """Return an image as a file for `set_input_files`."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return {"name": "image.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def choose_start_image(page, image):
    """Choose a start image by its file."""
    page.locator("#image").set_input_files(png(image))
    expect(page.locator("#start-shown")).to_be_visible()


def press_generate(page, prompt="a star"):
    """Fill in the prompt and press the button."""
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()


def drag_with_finger(page, *points):
    """Touch the first point, move through the others, and lift the finger."""
    session = page.context.new_cdp_session(page)
    events = [("touchStart", points[:1]), *(("touchMove", [point]) for point in points[1:]), ("touchEnd", [])]
    for kind, touched in events:
        touches = [{"x": x, "y": y} for x, y in touched]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
