"""The history: several tabs, reloads, removal with undo, favourites and search."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.actions import generate, images, press_generate, submit, wait_for_image


@pytest.fixture
def stored(page, gateway):
    """A page with a history of three images of two jobs."""
    generate(page, "a red circle", n=2, num_inference_steps=1)
    generate(page, "a blue square", num_inference_steps=1)
    return page


def tiles(page):
    """Return the locator of the visible tiles."""
    return page.locator(".tile:not([hidden])")


def test_tabs_share_one_history(stored, new_page, gateway):
    other = new_page(gateway, context=stored.context)
    wait_for_image(other, "a blue square")
    submit(other, "a star of the other tab", num_inference_steps=1)
    wait_for_image(stored, "a star of the other tab")
    submit(stored, "a ring of the first tab", num_inference_steps=1)
    wait_for_image(other, "a ring of the first tab")
    for page in (stored, other):
        page.reload()
        expect(tiles(page)).to_have_count(5)
    other.get_by_role("button", name="Remove: a blue square").click()
    expect(images(stored, "a blue square")).to_have_count(0)


def test_prompt_and_settings_survive_a_reload(page):
    fields = {"Steps": "12", "Guidance": "4.5", "Seed": "7", "Width": "128", "Height": "64"}
    page.get_by_label("Prompt", exact=True).fill("an unfinished prompt")
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Scheduler").select_option("EulerDiscreteScheduler")
    page.reload()
    page.locator(".gpu .state.ready").wait_for()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("an unfinished prompt")
    for label, value in fields.items():
        expect(page.get_by_label(label, exact=True)).to_have_value(value)
    expect(page.get_by_label("Scheduler")).to_have_value("EulerDiscreteScheduler")


def test_clearing_the_history_asks_keeps_favourites_and_is_undone(stored):
    stored.get_by_role("button", name="Favourite: a red circle").first.click()
    stored.get_by_role("button", name="Clear history").click()
    dialog = stored.get_by_role("dialog", name="Clear the history?")
    expect(dialog).to_contain_text("2 images will be removed. Favourites and running jobs stay.")
    dialog.get_by_role("button", name="Keep").click()
    expect(tiles(stored)).to_have_count(3)
    stored.get_by_role("button", name="Clear history").click()
    dialog.get_by_role("button", name="Clear", exact=True).click()
    expect(tiles(stored)).to_have_count(1)
    expect(stored.get_by_role("button", name="Undo")).to_be_focused()
    stored.keyboard.press("Enter")
    expect(tiles(stored)).to_have_count(3)
    stored.reload()
    expect(tiles(stored)).to_have_count(3)
    expect(stored.get_by_role("button", name="Favourite: a red circle").first).to_have_attribute(
        "aria-pressed", "true"
    )


def test_single_images_are_removed_and_restored(stored):
    stored.get_by_role("button", name="Remove: a red circle").first.click()
    expect(images(stored, "a red circle")).to_have_count(1)
    stored.reload()
    expect(images(stored, "a red circle")).to_have_count(1)
    stored.get_by_role("button", name="Remove: a red circle").click()
    expect(images(stored, "a red circle")).to_have_count(0)
    stored.get_by_role("button", name="Undo").click()
    expect(images(stored, "a red circle")).to_have_count(1)


def test_images_are_found_by_prompt_and_favourites(stored):
    stored.get_by_label("Search prompts").fill("SQUARE blue")
    expect(tiles(stored)).to_have_count(1)
    stored.get_by_label("Search prompts").fill("triangle")
    expect(stored.locator("#empty")).to_have_text("No image matches.")
    stored.get_by_label("Search prompts").fill("")
    stored.get_by_role("button", name="Favourite: a red circle").last.click()
    stored.get_by_role("button", name="Favourites").click()
    expect(tiles(stored)).to_have_count(1)
    expect(tiles(stored)).to_contain_text("a red circle")


def test_the_history_is_shown_while_the_gateway_does_not_answer(stored):
    stored.route(re.compile("openapi.json|/v1/jobs|/v1/models|/fleet/"), lambda route: route.abort())
    stored.reload()
    expect(tiles(stored)).to_have_count(3)
    expect(stored.locator("#banner")).to_contain_text("Offline, retrying")


def test_deleted_images_are_shown_as_expired_and_their_settings_stay(stored):
    stored.route("**/v1/files/*", lambda route: route.fulfill(status=404))
    stored.reload()
    tile = tiles(stored).first
    expect(tile).to_contain_text("Expired")
    tile.locator("button.frame").click()
    stored.get_by_role("button", name="Use again").click()
    expect(stored.get_by_label("Prompt", exact=True)).to_have_value("a blue square")
    expect(stored.get_by_label("Steps", exact=True)).to_have_value("1")


def test_favourites_outlast_the_files_of_the_gateway(stored):
    with stored.expect_response("**/v1/files/*"):
        stored.get_by_role("button", name="Favourite: a blue square").click()
    stored.wait_for_function(
        """async () => {
            const { HistoryStore, partOf } = await import("./static/history_store.js");
            const store = new HistoryStore(() => {});
            const [marked] = (await store.entries()).filter(({ favourites }) => favourites.length);
            return store.inputs(partOf(marked.id, 0));
        }"""
    )
    stored.route("**/v1/files/*", lambda route: route.fulfill(status=404))
    stored.reload()
    wait_for_image(stored, "a blue square").first.click()
    stored.wait_for_function("() => document.getElementById('viewer-image').naturalWidth > 0")
    stored.get_by_role("button", name="Use as start image").click()
    expect(stored.locator("#start-size")).to_have_text("64 × 64")


def test_a_history_of_an_earlier_version_is_kept(page, gateway):
    job = page.request.post(f"{gateway}/v1/jobs", data={"prompt": "an old star", "num_inference_steps": 1}).json()
    asked = {"prompt": "an old star", "num_inference_steps": 1}
    page.evaluate(
        "text => localStorage.setItem('imagegen-history', text)", json.dumps([{"id": job["id"], "asked": asked}])
    )
    page.reload()
    wait_for_image(page, "an old star")
    page.reload()
    wait_for_image(page, "an old star")
    assert page.evaluate("localStorage.getItem('imagegen-history')") is None


def test_the_history_is_bounded(page):
    kept = page.evaluate(
        """async () => {
            const { HistoryStore, newEntry } = await import("./static/history_store.js");
            const store = new HistoryStore(() => {}, { entries: 3, inputBytes: 250 });
            const image = new Blob([new Uint8Array(100)]);
            for (let index = 0; index < 6; index += 1) {
                const job = { state: "cancelled", prompt: "a" };
                const entry = newEntry(`entry ${index}`, { prompt: "a" }, index, job);
                await store.put({ ...entry, favourites: index ? [] : [0] });
                await store.putInputs(entry.id, { image, mask: null });
                await new Promise((resolve) => setTimeout(resolve, 2));
            }
            const inputs = [];
            for (let index = 0; index < 6; index += 1) {
                if (await store.inputs(`entry ${index}`)) inputs.push(index);
            }
            return [(await store.entries()).map(({ id }) => id), inputs];
        }"""
    )
    assert kept == [["entry 5", "entry 4", "entry 0"], [4, 5]]


def test_a_browser_without_storage_says_so(new_page, gateway):
    page = new_page("about:blank")
    page.add_init_script("indexedDB.open = () => { throw new DOMException('off', 'SecurityError'); };")
    page.goto(gateway)
    page.locator(".gpu .state.ready").wait_for()
    expect(page.locator("#notice")).to_contain_text("does not store the history")
    press_generate(page, "a fleeting star")
    wait_for_image(page, "a fleeting star")
