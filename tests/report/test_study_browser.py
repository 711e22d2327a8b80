"""The page of a study in headless Chromium: no network, no error of the console, click, and two widths."""

import shutil

import pytest

from chainfx.study import analyse
from tests.study.test_analysis import design, filled, further

pytestmark = pytest.mark.slow

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
_ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]


def test_the_page_in_a_browser(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = tmp_path / "page.html"
    path.write_text(analyse(filled(tmp_path / "study", design(), further)).to_html(), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=_ARGUMENTS)
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium to launch: {str(error).splitlines()[0]}")
        page = browser.new_context(offline=True).new_page()
        errors, asked = [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        for width in (400, 1600):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            texts = page.locator("svg text").evaluate_all("all => all.map(each => each.getBoundingClientRect().height)")
            assert min(texts) >= 8  # pixels
        point = page.locator("circle.second").last
        assert (
            "early-exit(exits=1, threshold=1.01, keep=True) > quantize(4, 4)" in point.locator("title").text_content()
        )
        faint = point.evaluate("each => getComputedStyle(each).fillOpacity")
        point.hover()
        assert float(point.evaluate("each => getComputedStyle(each).fillOpacity")) == 1 > float(faint)
        point.click()
        assert page.locator("#recipe").text_content() == point.locator("title").text_content()
        assert page.locator("polyline").first.evaluate("each => getComputedStyle(each).fill") == "none"
        assert page.locator("table.map").count() == 3
        assert errors == [] and asked == [path.as_uri()]
        browser.close()
