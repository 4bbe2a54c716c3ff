"""A real browser for pages that move: headless Chromium, and what it made of a viewer's page."""

import html.parser
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pytest


class Page(html.parser.HTMLParser):
    """What a browser made of the page: tokens by panel, their classes, the text of elements with an id."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.panels, self.classes, self.body, self.by_id = [], [], [], {}, {}
        self._open: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.body = found if tag == "body" else self.body
        kind = found.get("class") or ""
        if kind == "tokens":
            self.panels.append([])
            self.classes.append([])
        token = kind.split()[:1] == ["t"]
        if token:
            self.panels[-1].append("")
            self.classes[-1].append(set(kind.split()))
        if tag not in ("meta", "input", "br", "img", "link"):
            self._open.append("token" if token else "title" if tag == "title" else found.get("id"))

    def handle_endtag(self, tag):
        if self._open:
            self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1] == "token":
            self.panels[-1][-1] += data
        elif self._open and self._open[-1]:
            self.by_id[self._open[-1]] = self.by_id.get(self._open[-1], "") + data


def browser(profile: pathlib.Path) -> Callable[..., Page]:
    """A function from a page's file and a fragment to the page as it is after 20 seconds; a skip without Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if (path := shutil.which(os.environ.get("CHROMIUM", name)))), None)
    if found is None:
        pytest.skip("there is no chromium; set CHROMIUM to a browser's command")

    def run(page: pathlib.Path, fragment: str = "") -> Page:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command = [found, *flags, "--virtual-time-budget=20000", "--dump-dom", f"{page.as_uri()}#{fragment}"]
        return Page(subprocess.run(command, capture_output=True, timeout=180, check=True).stdout.decode())

    return run
