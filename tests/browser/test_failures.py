"""Lost workers, brokers and gateways, and missing or limited keys, as the page shows them."""

import json
import re
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from tests.browser.actions import SLOW, generate, images, submit
from tests.browser.conftest import BROKER, SMALL
from tests.e2e.conftest import command
from tools.browser import SHAPES, start_gateway


@contextmanager
def gateway_with(fleet, folder, *arguments):
    """Run a second gateway during the block."""
    yield start_gateway(fleet, folder, *arguments, name="limited")
    assert fleet.terminate("limited") == 0


def add_key(folder, name, *limits):
    """Create an API key and return it."""
    output = command(
        "imagegen-gateway", "--state-folder", str(folder), "keys", "add", name, *limits, "--json"
    ).stdout
    return json.loads(output)["key"]


def test_a_killed_worker_disappears_and_returns(page, fleet):
    fleet.start_worker("gpu1", "--gpu", "1", *SHAPES, *SMALL)
    card = page.locator(".gpu", has_text="gpu1")
    expect(card.locator(".state")).to_have_text("ready", timeout=120_000)
    expect(page.locator("#summary")).to_contain_text("2 GPUs")
    fleet.kill("gpu1")
    expect(card.locator(".state")).to_have_text(re.compile("gone|unreachable"), timeout=60_000)
    expect(page.locator("#summary")).to_contain_text("1 GPU,", timeout=60_000)
    expect(card.locator(".state")).to_have_text("gone")
    fleet.start_worker("gpu1", "--gpu", "1", *SHAPES, *SMALL)
    expect(card.locator(".state")).to_have_text("ready", timeout=120_000)
    fleet.terminate("gpu1")


def test_a_lost_broker_is_reported_and_jobs_continue_when_it_is_back(page, fleet):
    fleet.kill("broker")
    banner = page.get_by_role("alert").filter(has_text="broker")
    expect(banner).to_contain_text("does not answer", timeout=60_000)
    expect(page.locator(".gpu .state").first).to_have_text("stale")
    submit(page, "a patient star")
    fleet.start_broker(*BROKER)
    expect(page.get_by_text("does not answer")).to_be_hidden(timeout=60_000)
    expect(images(page, "a patient star")).to_be_visible(timeout=60_000)
    expect(banner).to_be_hidden()


def test_a_lost_gateway_is_reported_and_its_jobs_continue(new_page, fleet, tmp_path):
    url = start_gateway(fleet, tmp_path, name="mortal")
    page = new_page(url)
    page.locator(".gpu .state.ready").wait_for()
    submit(page, "a surviving ring", num_inference_steps=300)
    fleet.kill("mortal")
    expect(page.locator("#banner")).to_contain_text("Offline, retrying", timeout=60_000)
    port = url.rpartition(":")[2]
    start_gateway(fleet, tmp_path, "--http", f"127.0.0.1:{port}", name="mortal")
    expect(page.locator("#banner")).to_have_text("The gateway is back.", timeout=60_000)
    expect(images(page, "a surviving ring")).to_be_visible(timeout=120_000)
    expect(page.locator("#banner")).to_be_hidden(timeout=60_000)
    page.context.close()
    assert fleet.terminate("mortal") == 0


def test_a_key_is_requested_and_stored_in_the_tab(new_page, fleet, tmp_path):
    with gateway_with(fleet, tmp_path, "--auth", "keys") as url:
        key = add_key(tmp_path, "alice")
        page = new_page(url)
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_contain_text("This gateway requires a key.")
        dialog.get_by_label("Key", exact=True).fill("imagegen_wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("The gateway rejects this key")
        dialog.get_by_label("Key", exact=True).fill(key)
        dialog.get_by_role("button", name="Use this key").click()
        generate(page, "a keyed circle")
        page.reload()
        expect(images(page, "a keyed circle")).to_be_visible()
        assert page.evaluate("JSON.stringify(localStorage)").find(key) < 0
        page.context.close()


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (("--requests-per-minute", "1"), "limited to 1 image per minute"),
        (("--max-in-flight", "1"), "maximum of 1 requests and jobs in flight"),
    ],
)
def test_a_key_beyond_its_limits_sees_a_retry_countdown(new_page, fleet, tmp_path, limit, message):
    with gateway_with(fleet, tmp_path, "--auth", "keys") as url:
        page = new_page(url)
        page.get_by_label("Key", exact=True).fill(add_key(tmp_path, "bob", *limit))
        page.keyboard.press("Enter")
        page.locator(".gpu .state.ready").wait_for()
        tile = submit(page, "a slow limit", num_inference_steps=SLOW)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#problem")).to_contain_text(message)
        expect(page.locator("#problem")).to_contain_text("Try again in")
        expect(page.locator("#generate")).to_be_disabled()
        tile.get_by_role("button", name="Cancel").click()
        page.context.close()


def test_a_full_gateway_shows_a_retry_countdown(new_page, fleet, tmp_path):
    with gateway_with(fleet, tmp_path, "--max-jobs", "1") as url:
        page = new_page(url)
        page.locator(".gpu .state.ready").wait_for()
        tile = submit(page, "the only job", num_inference_steps=SLOW)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#generate")).to_have_text(re.compile(r"Try again in (29|30) s"))
        expect(page.locator("#problem")).to_contain_text("maximum of 1 unfinished jobs")
        tile.get_by_role("button", name="Cancel").click()
        page.context.close()
