"""Generation on the page: the form, progress, cancellation, history and reuse of images."""

import json
import re

from PIL import Image
from playwright.sync_api import expect

from tests.browser.actions import SLOW, generate, images, submit, submit_too_large


def test_images_are_generated_and_downloaded_with_their_parameters(page, tmp_path):
    image = generate(page, "a red circle on a blue background", n=2, seed=7)
    expect(image).to_have_count(2)
    expect(page.get_by_text("Seed 7", exact=True)).to_be_visible()
    image.first.click()
    expect(page.locator("#viewer-parameters")).to_contain_text("Steps20")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "a-red-circle-on-a-blue-background-7.png"
    download.value.save_as(tmp_path / "downloaded.png")
    with Image.open(tmp_path / "downloaded.png") as file:
        parameters = json.loads(file.text["parameters"])
    assert (parameters["prompt"], parameters["seed"]) == ("a red circle on a blue background", 7)


def test_the_form_has_the_ranges_and_defaults_of_the_model(page):
    steps, width = page.get_by_label("Steps", exact=True), page.get_by_label("Width", exact=True)
    expect(steps).to_have_attribute("placeholder", "20")
    expect(width).to_have_attribute("placeholder", "64")
    expect(width).to_have_attribute("max", "256")
    expect(width).to_have_attribute("step", "8")
    page.get_by_text("More", exact=True).click()
    scheduler = page.get_by_label("Scheduler")
    assert len(scheduler.locator("option").all()) > 1
    expect(scheduler.locator("option").first).to_have_text(re.compile("default"))
    expect(page.locator("#loras")).to_be_hidden()


PLAIN = {
    "width": {"default": 512, "minimum": 16, "maximum": 1024, "multiple_of": 16},
    "height": {"default": 768, "minimum": 16, "maximum": 1024, "multiple_of": 16},
    "num_inference_steps": {"default": 4, "minimum": 1, "maximum": 1000},
    "n": {"default": 1, "minimum": 1, "maximum": 16},
    "output_format": {"default": "png", "enum": ["png", "jpeg", "webp"]},
}
"""The parameters of a distilled model."""
ABLE = {
    **PLAIN,
    "guidance_scale": {"default": 7.5, "minimum": 0, "maximum": 100},
    "negative_prompt": {"max_length": 10000},
    "scheduler": {"default": "DDIMScheduler", "enum": ["DDIMScheduler", "EulerDiscreteScheduler"]},
    "loras": {"max_items": 1, "enum": ["ink", "oil"]},
    "image": {},
    "strength": {"default": 0.8, "exclusive_minimum": 0, "maximum": 1},
}


def serve_models(page, **models):
    """Replace the response of `/v1/models`; the first model is the default."""
    data = [
        {
            "id": name,
            "object": "model",
            "created": 1,
            "owned_by": "imagegen",
            "default": not index,
            "parameters": parameters,
        }
        for index, (name, parameters) in enumerate(models.items())
    ]
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": data}))
    page.reload()
    expect(page.get_by_label("Model")).to_contain_text("(default)")


def test_the_form_changes_with_the_model(page):
    serve_models(page, able=ABLE, plain=PLAIN, unknown=None)
    page.get_by_text("More", exact=True).click()
    names = ("Guidance", "Negative prompt", "Scheduler")
    shown = [page.get_by_label(name, exact=True) for name in names] + [page.get_by_text("or drop or paste one")]
    for field in shown:
        expect(field).to_be_visible()
    expect(page.get_by_label("Steps", exact=True)).to_have_attribute("placeholder", "4")
    page.get_by_label("Guidance", exact=True).fill("3")
    page.get_by_label("Scheduler").select_option("EulerDiscreteScheduler")
    page.get_by_label("Model").select_option("plain")
    for field in shown:
        expect(field).to_be_hidden()
    with page.expect_request("**/v1/jobs") as sent:
        submit(page, "a plain star")
    assert not {"guidance_scale", "scheduler"} & set(sent.value.post_data_json)
    page.get_by_label("Model").select_option("unknown")
    expect(page.get_by_label("Guidance", exact=True)).to_be_visible()
    expect(page.get_by_label("Steps", exact=True)).to_have_attribute("placeholder", "model's own")
    expect(page.get_by_label("Steps", exact=True)).to_have_attribute("max", "1000")


def test_a_newly_declared_parameter_has_a_field(page, gateway):
    document = page.request.get(f"{gateway}/openapi.json").json()
    new = {
        "kind": "number", "listed": True, "choices_by_model": False, "description": "New.",
        "minimum": 0, "maximum": 1,
    }  # fmt: skip
    declared = document["components"]["schemas"]["JobBody"]["x-parameters"]
    declared += [{**new, "name": "rescale", "label": "Rescale", "group": "more"}]
    declared += [{**new, "name": "tiled", "label": "Tiled", "kind": "boolean", "group": "main"}]
    page.route("**/openapi.json", lambda route: route.fulfill(json=document))
    taken = {"rescale": {"default": 0.25, "minimum": 0, "maximum": 0.5}, "tiled": {}}
    serve_models(page, able={**ABLE, **taken}, plain=PLAIN)
    page.get_by_text("More", exact=True).click()
    rescale = page.get_by_label("Rescale")
    expect(rescale).to_have_attribute("placeholder", "0.25")
    rescale.fill("0.75")
    page.get_by_role("button", name="Generate").click()
    page.get_by_label("Prompt", exact=True).fill("a new star")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_have_text("Rescale: a number from 0 to 0.5.")
    rescale.fill("0.5")
    page.get_by_label("Tiled").select_option("yes")
    with page.expect_request("**/v1/jobs") as sent:
        page.get_by_role("button", name="Generate").click()
    assert (sent.value.post_data_json["rescale"], sent.value.post_data_json["tiled"]) == (0.5, True)
    page.get_by_label("Model").select_option("plain")
    expect(rescale).to_be_hidden()


def test_loras_are_selected(page):
    serve_models(page, able=ABLE)
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_label("Scale of ink")).to_be_disabled()
    page.get_by_label("ink", exact=True).check()
    page.get_by_label("Scale of ink").fill("0.5")
    with page.expect_request("**/v1/jobs") as sent:
        page.get_by_label("Prompt", exact=True).fill("a star in ink")
        page.get_by_role("button", name="Generate").click()
    assert sent.value.post_data_json["loras"] == [{"name": "ink", "scale": 0.5}]
    page.get_by_label("oil", exact=True).check()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_have_text("Maximum number of LoRAs: 1.")


def test_a_job_shows_its_progress_and_is_cancelled(page):
    tile = submit(page, "a slow star", num_inference_steps=SLOW)
    expect(tile).to_contain_text(re.compile(rf"Step \d+ of {SLOW}"), timeout=60_000)
    expect(tile.locator("img.preview")).to_have_attribute("src", re.compile("^data:image/"))
    bar = tile.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuenow", re.compile("[1-9]"), timeout=60_000)
    tile.get_by_role("button", name="Cancel").click()
    expect(tile.locator(".words")).to_have_text("Cancelled")
    expect(page.get_by_role("status")).to_have_text("a slow star: cancelled")
    expect(page.locator(".gpu")).to_contain_text("0 images running")


def test_queued_jobs_show_their_positions(page):
    tiles = [submit(page, f"a slow ring, {number}", num_inference_steps=SLOW) for number in range(4)]
    expect(tiles[-1]).to_contain_text(re.compile(r"Position \d in the queue"), timeout=60_000)
    expect(page.locator("#figures > div", has_text="Queued").locator("dd")).to_have_text(re.compile("[12]"))
    expect(page.locator(".rows i.running, .rows i.waiting")).to_have_count(2)
    for tile in reversed(tiles):
        tile.get_by_role("button", name="Cancel").click()
        expect(tile.locator(".words")).to_have_text("Cancelled")


def test_memory_and_temperature_are_shown_if_reported(page):
    expect(page.locator(".gpu")).not_to_contain_text("GiB")
    gpu = {
        "worker": "gpu0",
        "host": "h",
        "gpu_id": 0,
        "device": "cuda",
        "models": ["m"],
        "state": "ready",
        "current_queue_depth": 3,
        "running": 2,
        "capacity": 4,
        "images_per_second": [0.5],
        "memory_used_bytes": 3 * 2**30,
        "memory_total_bytes": 80 * 2**30,
        "temperature_celsius": 61.0,
    }
    data = {"lost_for_seconds": None, "estimated_wait_seconds": 0.0, "queued_requests": 0, "gpus": [gpu]}
    page.route("**/fleet/events", lambda route: route.fulfill(body=f"event: fleet\ndata: {json.dumps(data)}\n\n"))
    page.reload()
    expect(page.locator(".gpu")).to_contain_text("3.0 of 80.0 GiB, 61 °C")
    expect(page.get_by_label("2 running and 1 waiting, of 4 images")).to_be_visible()


def test_a_reload_restores_images_and_running_jobs(page):
    generate(page, "a green square")
    submit(page, "a slow cross", num_inference_steps=SLOW)
    page.reload()
    expect(images(page, "a green square")).to_be_visible()
    tile = page.locator(".tile", has_text="a slow cross")
    expect(tile).to_contain_text(re.compile(rf"Step \d+ of {SLOW}"), timeout=60_000)
    tile.get_by_role("button", name="Cancel").click()
    expect(tile.locator(".words")).to_have_text("Cancelled")
    tile.get_by_role("button", name="Remove").click()
    expect(tile).to_have_count(0)
    page.reload()
    expect(images(page, "a green square")).to_be_visible()
    expect(page.get_by_text("a slow cross")).to_have_count(0)


def test_the_history_belongs_to_one_browser(page, new_page, gateway):
    generate(page, "a purple star")
    other = new_page(gateway)
    other.locator(".gpu").wait_for()
    expect(other.locator("#empty")).to_be_visible()


def test_an_image_is_used_again_varied_and_used_as_input(page):
    generate(page, "a blue triangle", seed=11, num_inference_steps=12).first.click()
    page.get_by_role("button", name="Use again").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("11")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("12")

    images(page, "a blue triangle").first.click()
    page.get_by_role("button", name="Vary the seed").click()
    expect(images(page, "a blue triangle")).to_have_count(2, timeout=60_000)
    expect(page.get_by_text("Seed 11", exact=True)).to_have_count(1)

    images(page, "a blue triangle").last.click()
    page.get_by_role("button", name="Use as start image").click()
    expect(page.get_by_label("Start image", exact=True).and_(page.locator("canvas"))).to_be_visible()
    page.get_by_label("Strength", exact=True).fill("0.6")
    generate(page, "a blue square", seed=3).first.click()
    expect(page.locator("#viewer-parameters")).to_contain_text("Strength0.6")


def test_invalid_fields_are_reported_and_focused(page):
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_have_text("Enter a prompt.")
    page.get_by_label("Prompt", exact=True).fill("a star")
    page.get_by_label("Steps", exact=True).fill("5000")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_have_text("Steps: a whole number from 1 to 1000.")
    expect(page.get_by_label("Steps", exact=True)).to_be_focused()
    page.get_by_label("Steps", exact=True).fill("")
    page.get_by_label("Width", exact=True).fill("9000")
    page.get_by_label("Height", exact=True).fill("64")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_have_text("Width: a multiple of 8 from 8 to 256.")
    expect(page.get_by_label("Width", exact=True)).to_be_focused()
    page.get_by_label("Width", exact=True).fill("")
    page.get_by_label("Height", exact=True).fill("")
    page.locator("#n").fill("2")
    page.get_by_label("Seed", exact=True).fill(str(2**53 - 1))
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_have_text(f"Seed: a whole number from 0 to {2**53 - 2}.")
    expect(page.get_by_label("Seed", exact=True)).to_be_focused()


def test_a_rejection_by_the_model_is_shown(page):
    tile = submit_too_large(page, "a huge star")
    expect(tile.locator(".failed .words")).to_contain_text("256", timeout=60_000)
