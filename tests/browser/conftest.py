"""Chromium through playwright, one JupyterLab, and the five notebooks, opened once and run at the same time."""

import os
import shutil

import pytest

from helpers.course import course_notebooks
from tests.browser.lab import JupyterLab, Notebook

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser():
    """Return Chromium; without it the tests are skipped, except in CI, where they fail."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium: `apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    server = JupyterLab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def open_notebook(browser, lab):
    """Return a function that opens a notebook in its own page."""

    def opened(name, *, width=1280, height=1100):
        return Notebook(lab, browser.new_page(viewport={"width": width, "height": height}), name)

    return opened


@pytest.fixture(scope="session")
def notebooks(open_notebook):
    """Return the five notebooks, each running from top to bottom or shown as already executed."""
    longest_first = sorted(course_notebooks(), key=lambda path: path.stem[:2] not in ("03", "05"))
    opened = {}
    for path in longest_first:
        opened[path.stem[:2]] = open_notebook(path.name)
        opened[path.stem[:2]].run_remaining_cells()
    return dict(sorted(opened.items()))
