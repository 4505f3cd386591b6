"""Workers and brokers that go and come, keys, and limits, as the page tells of them."""

import json
import re
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from tests.browser.actions import SLOW, ask_for, make, pictures
from tests.browser.conftest import BROKER, SMALL
from tests.e2e.conftest import command
from tools.browser import SHAPES, start_gateway


@contextmanager
def gateway_with(fleet, folder, *arguments):
    """Run a second gateway for as long as the block."""
    yield start_gateway(fleet, folder, *arguments, name="limited")
    assert fleet.terminate("limited") == 0


def add_key(folder, name, *limits):
    """Make an API key and return it."""
    said = command(
        "imagegen-gateway", "--state-folder", str(folder), "keys", "add", name, *limits, "--json"
    ).stdout
    return json.loads(said)["key"]


def test_a_worker_that_is_killed_is_gone_and_comes_back(page, fleet):
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


def test_a_broker_that_is_lost_is_told_and_work_goes_on_when_it_is_back(page, fleet):
    fleet.kill("broker")
    banner = page.get_by_role("alert").filter(has_text="broker")
    expect(banner).to_contain_text("does not answer", timeout=60_000)
    expect(page.locator(".gpu .state").first).to_have_text("no news")
    ask_for(page, "a patient star")
    fleet.start_broker(*BROKER)
    expect(banner).to_have_text("The broker is back.", timeout=60_000)
    expect(pictures(page, "a patient star")).to_be_visible(timeout=60_000)
    expect(banner).to_be_hidden()


def test_a_gateway_that_is_lost_is_told_and_its_jobs_go_on(new_page, fleet, tmp_path):
    url = start_gateway(fleet, tmp_path, name="mortal")
    page = new_page(url)
    page.locator(".gpu .state.ready").wait_for()
    ask_for(page, "a surviving ring", num_inference_steps=300)
    fleet.kill("mortal")
    expect(page.locator("#banner")).to_contain_text("Trying again", timeout=60_000)
    port = url.rpartition(":")[2]
    start_gateway(fleet, tmp_path, "--http", f"127.0.0.1:{port}", name="mortal")
    expect(page.locator("#banner")).to_have_text("The gateway is back.", timeout=60_000)
    expect(pictures(page, "a surviving ring")).to_be_visible(timeout=120_000)
    expect(page.locator("#banner")).to_be_hidden(timeout=60_000)
    page.context.close()
    assert fleet.terminate("mortal") == 0


def test_a_key_is_asked_for_and_kept_in_this_tab(new_page, fleet, tmp_path):
    with gateway_with(fleet, tmp_path, "--auth", "keys") as url:
        key = add_key(tmp_path, "alice")
        page = new_page(url)
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_contain_text("This gateway needs a key.")
        dialog.get_by_label("Key", exact=True).fill("imagegen_wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("The gateway does not take this key")
        dialog.get_by_label("Key", exact=True).fill(key)
        dialog.get_by_role("button", name="Use this key").click()
        make(page, "a keyed circle")
        page.reload()
        expect(pictures(page, "a keyed circle")).to_be_visible()
        assert page.evaluate("JSON.stringify(localStorage)").find(key) < 0
        page.context.close()


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (("--requests-per-minute", "1"), "may ask 1 times a minute"),
        (("--max-in-flight", "1"), "may have 1 requests and jobs at a time"),
    ],
)
def test_a_key_beyond_its_limits_is_told_when_to_come_back(new_page, fleet, tmp_path, limit, words):
    with gateway_with(fleet, tmp_path, "--auth", "keys") as url:
        page = new_page(url)
        page.get_by_label("Key", exact=True).fill(add_key(tmp_path, "bob", *limit))
        page.keyboard.press("Enter")
        page.locator(".gpu .state.ready").wait_for()
        tile = ask_for(page, "a slow limit", num_inference_steps=SLOW)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#problem")).to_contain_text(words)
        expect(page.locator("#problem")).to_contain_text("Try again in")
        expect(page.locator("#generate")).to_be_disabled()
        tile.get_by_role("button", name="Cancel").click()
        page.context.close()


def test_a_full_gateway_says_when_to_come_back(new_page, fleet, tmp_path):
    with gateway_with(fleet, tmp_path, "--max-jobs", "1") as url:
        page = new_page(url)
        page.locator(".gpu .state.ready").wait_for()
        tile = ask_for(page, "the only job", num_inference_steps=SLOW)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#generate")).to_have_text(re.compile(r"Try again in (29|30) s"))
        expect(page.locator("#problem")).to_contain_text("Too many jobs wait here")
        tile.get_by_role("button", name="Cancel").click()
        page.context.close()
