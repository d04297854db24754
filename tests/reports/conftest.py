"""A browser for the tests of pages, where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import without

PATIENCE_MS = 300_000
"""Milliseconds until something that a page should show is missed: a machine may stand still for a minute or two."""


def patient(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same pages, or contexts of pages, with that patience."""

    def made(**options: Any) -> Any:
        page = make(**options)
        page.set_default_timeout(PATIENCE_MS)
        return page

    return made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("AGNOSCO_CHROMIUM") or shutil.which("chromium")
    if path is None:
        without("there is no chromium: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            timeout=PATIENCE_MS,
        )
        browser.new_page, browser.new_context = patient(browser.new_page), patient(browser.new_context)
        playwright.expect.set_options(timeout=PATIENCE_MS)
        yield browser
        browser.close()
