"""A real headless browser for the tests of pages: Debian's Chromium, driven by playwright.

`browser_page(url, ...)` opens a page and gives a `Visit`; whatever the page asks for outside `allowed` is refused and
noted. Both are skipped, with the reason, where playwright or Chromium is absent.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# The sandbox needs rights that containers do not give; the rest keeps the browser from asking anybody anything.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --enable-unsafe-swiftshader"
).split()


@dataclass
class Visit:
    """An open page.

    Attributes:
        page: playwright's.
        errors: what the page wrote to the console as an error, and what it did not catch.
        refused: addresses that it asked for and did not get.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser itself."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which the dev extra brings")
    program = os.environ.get("NFC_SPLAT_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(CHROMIUM)} is installed (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS, timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture
def browser_page(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Opens pages: `browser_page(url, width=1280, height=900, allowed=("file:", "data:"), **context)`, where `context`
    goes to playwright (color_scheme="dark", has_touch=True)."""
    contexts = []

    def visit(
        url: str, *, width: int = 1280, height: int = 900, allowed: tuple[str, ...] = ("file:", "data:"), **context: Any
    ) -> Visit:
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, **context))
        contexts[-1].set_default_timeout(120_000)
        found = Visit(contexts[-1].new_page())

        def serve(route: Any) -> None:
            if route.request.url.startswith(allowed):
                route.continue_()
            else:
                found.refused.append(route.request.url)
                route.abort()

        found.page.on("console", lambda said: found.errors.append(said.text) if said.type == "error" else None)
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        contexts[-1].route("**/*", serve)
        found.page.goto(url)
        return found

    yield visit
    for context in contexts:
        context.close()
