"""Pictures on the page: made, watched, cancelled, found again, and used for others."""

import json
import re

from PIL import Image
from playwright.sync_api import expect

from tests.browser.actions import SLOW, ask_for, make, pictures


def test_pictures_are_made_and_can_be_kept_with_their_parameters(page, tmp_path):
    picture = make(page, "a red circle on a blue background", n=2, seed=7)
    expect(picture).to_have_count(2)
    expect(page.get_by_text("Seed 7", exact=True)).to_be_visible()
    picture.first.click()
    expect(page.locator("#detail-parameters")).to_contain_text("Steps20")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "a-red-circle-on-a-blue-background-7.png"
    download.value.save_as(tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as image:
        parameters = json.loads(image.text["parameters"])
    assert (parameters["prompt"], parameters["seed"]) == ("a red circle on a blue background", 7)


def test_the_models_defaults_show_once_a_picture_has_told_them(page):
    expect(page.get_by_label("Steps")).to_have_attribute("placeholder", "model's own")
    make(page, "a white ring")
    expect(page.get_by_label("Steps")).to_have_attribute("placeholder", "20")


def test_what_is_made_can_be_watched_and_cancelled(page):
    tile = ask_for(page, "a slow star", num_inference_steps=SLOW)
    expect(tile).to_contain_text(re.compile(rf"Step \d+ of {SLOW}"), timeout=60_000)
    expect(tile.locator("img.preview")).to_have_attribute("src", re.compile("^data:image/"))
    bar = tile.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuenow", re.compile("[1-9]"), timeout=60_000)
    tile.get_by_role("button", name="Cancel").click()
    expect(tile.locator(".words")).to_have_text("Cancelled")
    expect(page.get_by_role("status")).to_have_text("a slow star: is cancelled")
    expect(page.locator(".gpu")).to_contain_text("0 running")


def test_what_waits_tells_its_place(page):
    tiles = [ask_for(page, f"a slow ring, {number}", num_inference_steps=SLOW) for number in range(4)]
    expect(tiles[-1]).to_contain_text(re.compile(r"Place \d in the queue"), timeout=60_000)
    expect(page.locator("#figures > div", has_text="Queued").locator("dd")).to_have_text(re.compile("[12]"))
    expect(page.locator(".rows i.running, .rows i.waiting")).to_have_count(2)
    for tile in reversed(tiles):
        tile.get_by_role("button", name="Cancel").click()
        expect(tile.locator(".words")).to_have_text("Cancelled")


def test_memory_and_temperature_show_where_they_are_told(page):
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
    told = {"lost_for_seconds": None, "estimated_wait_seconds": 0.0, "queued_requests": 0, "gpus": [gpu]}
    page.route("**/fleet/events", lambda route: route.fulfill(body=f"event: fleet\ndata: {json.dumps(told)}\n\n"))
    page.reload()
    expect(page.locator(".gpu")).to_contain_text("3.0 of 80.0 GiB, 61 °C")
    expect(page.get_by_label("2 running and 1 waiting, of 4")).to_be_visible()


def test_a_reload_shows_what_was_made_and_goes_on_with_what_is(page):
    make(page, "a green square")
    ask_for(page, "a slow cross", num_inference_steps=SLOW)
    page.reload()
    expect(pictures(page, "a green square")).to_be_visible()
    tile = page.locator(".tile", has_text="a slow cross")
    expect(tile).to_contain_text(re.compile(rf"Step \d+ of {SLOW}"), timeout=60_000)
    tile.get_by_role("button", name="Cancel").click()
    expect(tile.locator(".words")).to_have_text("Cancelled")
    tile.get_by_role("button", name="Remove").click()
    page.reload()
    expect(pictures(page, "a green square")).to_be_visible()
    expect(page.get_by_text("a slow cross")).to_have_count(0)


def test_the_history_is_of_this_browser_alone(page, new_page, gateway):
    make(page, "a purple star")
    other = new_page(gateway)
    other.locator(".gpu").wait_for()
    expect(other.locator("#empty")).to_be_visible()


def test_a_picture_is_used_again_varied_and_started_from(page):
    make(page, "a blue triangle", seed=11, num_inference_steps=12).first.click()
    page.get_by_role("button", name="Use again").click()
    assert page.get_by_label("Seed").input_value() == "11"
    assert page.get_by_label("Steps").input_value() == "12"

    pictures(page, "a blue triangle").first.click()
    page.get_by_role("button", name="Vary the seed").click()
    expect(pictures(page, "a blue triangle")).to_have_count(2, timeout=60_000)
    expect(page.get_by_text("Seed 11", exact=True)).to_have_count(1)

    pictures(page, "a blue triangle").last.click()
    page.get_by_role("button", name="Start from it").click()
    expect(page.get_by_alt_text("The picture to start from")).to_be_visible()
    page.get_by_label("Strength").fill("0.6")
    make(page, "a blue square", seed=3).first.click()
    expect(page.locator("#detail-parameters")).to_contain_text("Strength0.6")


def test_what_is_wrong_is_said_at_its_field(page):
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_have_text("Say what the picture should show.")
    page.get_by_label("Prompt", exact=True).fill("a star")
    page.get_by_label("Steps").fill("5000")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_have_text("Steps: a whole number from 1 to 1000.")
    expect(page.get_by_label("Steps")).to_be_focused()
    page.get_by_label("Steps").fill("")
    page.get_by_label("Width").fill("9000")
    page.get_by_label("Height").fill("64")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_contain_text("8192")
    expect(page.get_by_label("Width")).to_be_focused()


def test_what_the_model_refuses_is_told(page):
    page.get_by_label("Width").fill("1024")
    page.get_by_label("Height").fill("1024")
    tile = ask_for(page, "a huge star")
    expect(tile.locator(".failed .words")).to_contain_text("256", timeout=60_000)
