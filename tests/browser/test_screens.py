"""What the page looks like, wide and narrow, light and dark: pictures for people, into out/screenshots/."""

from pathlib import Path

import pytest
from PIL import Image

from tests.browser.actions import make
from tests.browser.conftest import NARROW, WIDE

OUT = Path(__file__).parents[2] / "out" / "screenshots"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "viewport"), [("wide", WIDE), ("narrow", NARROW)])
def test_the_page_is_drawn(new_page, gateway, name, viewport, scheme):
    page = new_page(gateway, viewport, scheme)
    page.locator(".gpu .state.ready").first.wait_for(state="attached")
    for seed, prompt in enumerate(("a red circle on a blue background", "a yellow star on a purple background")):
        make(page, prompt, seed=seed)
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"page-{name}-{scheme}.png"
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=path)
    with Image.open(path) as shot:
        assert shot.size == (viewport["width"], viewport["height"])
        grey = shot.convert("L")
        assert len(grey.getcolors()) > 50, "there are pictures on it"
        corner = grey.getpixel((2, viewport["height"] - 3))
        assert corner > 160 if scheme == "light" else corner < 90
