"""The page in a real browser: nothing asked for, nothing clipped, everything seen."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from metaensemble.report import Report
from metaensemble.report.page import write_page

Make = Callable[..., Report]

SEEN = """
(() => {
  const wrong = [];
  const width = document.documentElement.clientWidth;
  if (document.scrollingElement.scrollWidth > width)
    wrong.push("the page is wider than the screen");
  for (const figure of document.querySelectorAll("svg, img")) {
    const box = figure.getBoundingClientRect();
    if (box.width < 40 || box.height < 40) wrong.push("an invisible figure");
    if (figure.tagName === "IMG" && !(figure.complete && figure.naturalWidth))
      wrong.push("a broken picture");
    for (const text of figure.querySelectorAll("text")) {
      const inner = text.getBoundingClientRect();
      const said = text.textContent;
      if (inner.left < box.left - 1 || inner.right > box.right + 1 ||
          inner.top < box.top - 1 || inner.bottom > box.bottom + 1)
        wrong.push("cut off: " + said);
      if (inner.height < 7) wrong.push("too small: " + said);
    }
  }
  for (const element of document.querySelectorAll("main *:not(svg *)")) {
    if (element.closest("details:not([open])")) continue;
    if (element.closest(".scroll") && !element.matches(".scroll")) continue;
    const box = element.getBoundingClientRect();
    if (box.left < -1 || box.right > width + 1)
      wrong.push("beyond the screen: " + element.tagName + " " + element.className);
    if (element.matches(".scroll")) continue;
    if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth)
      wrong.push("text cut in: " + element.tagName + " " + element.className);
  }
  return wrong;
})()
"""
CONTRASTS = """
(() => {
  const parse = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = c => {
    const [r, g, b] = c.map(v => v / 255).map(
      v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(parse(getComputedStyle(document.body).backgroundColor));
  const found = {};
  for (const element of document.querySelectorAll("h1, p, td, dd, svg text")) {
    const style = getComputedStyle(element);
    const paint = element.tagName === "text" ? style.fill : style.color;
    const own = light(parse(paint));
    const ratio = (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05);
    found[element.tagName + " " + paint] = ratio;
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def chromium(script: Callable[[Path], ModuleType]) -> Iterator[Any]:
    tool = script(Path(__file__).with_name("browser.py"))
    path = tool.installed()
    if path is None:
        pytest.skip(f"needs a browser on PATH: one of {', '.join(tool.NAMES)}")
    with tool.browser(path) as page:
        yield page


@pytest.fixture(scope="module")
def pages(full_page: Callable[[Path], None], tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "page.html"
    full_page(path)
    return path


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_seen_and_nothing_is_asked_for(
    chromium, pages: Path, width: int, scheme: str
):
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.open(pages, width, scheme)
    assert chromium.run("document.querySelectorAll('svg').length") == 7
    assert chromium.run("document.querySelectorAll('img').length") == 12
    assert chromium.run(SEEN) == []
    assert chromium.complaints == []
    asked = [url for url in chromium.requests if not url.startswith("data:")]
    assert asked == [pages.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_ground(chromium, pages: Path, scheme: str):
    chromium.open(pages, 1280, scheme)
    found = chromium.run(CONTRASTS)
    assert len(found) > 5
    poor = {what: ratio for what, ratio in found.items() if ratio < 3}
    assert poor == {}


def test_light_and_dark_differ(chromium, pages: Path):
    grounds = []
    for scheme in ("light", "dark"):
        chromium.open(pages, 1280, scheme)
        grounds.append(chromium.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]


def test_on_paper_everything_is_unfolded(chromium, pages: Path):
    chromium.open(pages, 800, "dark", "print")
    ground = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    folded = chromium.run(
        "[...document.querySelectorAll('details > :not(summary)')]"
        ".filter(e => e.getBoundingClientRect().height < 5).length"
    )
    assert folded == 0


def test_long_names_are_not_cut(chromium, make: Make, tmp_path: Path):
    methods = [
        {"name": "kd", "temperature": t, "projection": "a_very_long_value" * 3}
        for t in (1.0, 2.0, 4.0)
    ]
    reports = [
        make(0.92 + 0.01 * i, method=method, cost={"train_images": 1000 * i})
        for i, method in enumerate(methods)
    ]
    path = tmp_path / "long.html"
    write_page(path, "x" * 200, reports)
    for width in (390, 1280):
        chromium.open(path, width, "light")
        assert chromium.run(SEEN) == []
