"""The page and its headline: what they show, and that no name can break out."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from metaensemble.core.errors import InputError
from metaensemble.report import Report
from metaensemble.report.aggregate import aggregate
from metaensemble.report.card import write_card
from metaensemble.report.page import write_page
from metaensemble.report.verdict import headline, verdict

Make = Callable[..., Report]
VOID = {"meta", "br", "img", "path", "use"}


class Outline(HTMLParser):
    """Collects tags, text and links, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.alternatives: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = {"src", "href", "xlink:href", "action", "data"}
        self.links += [value or "" for name, value in attrs if name in names]
        given = dict(attrs)
        if tag in ("img", "svg"):
            self.alternatives.append(given.get("alt") or given.get("aria-label") or "")
        if tag not in ("path", "g") and given.get("id"):
            self.ids.append(given["id"] or "")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def outline(path: Path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.stack == []
    return parser


def page(tmp_path: Path, reports: list[Report]) -> Outline:
    write_page(tmp_path / "page.html", "the title", reports)
    return outline(tmp_path / "page.html")


def test_the_page_shows_verdict_table_figures_command_and_environment(
    make: Make, tmp_path: Path
):
    found = page(tmp_path, [make(0.96), make(0.93, name="soup")])
    text = "\n".join(found.words)
    assert "Of 2 methods, kd comes closest to the ensemble: 96.0% in one" in text
    for part in ("75.0", "metaensemble fuse", "torch", "zoo/0.safetensors", "4.0 ×"):  # noqa: RUF001
        assert part in text
    assert found.tags.count("svg") == 3  # accuracy, latency, calibration
    assert found.tags.count("tr") == 1 + 5 + 1 + 2


def test_the_page_needs_no_network_and_no_scripts(make: Make, tmp_path: Path):
    found = page(tmp_path, [make()])
    assert not {"script", "link", "img", "iframe", "a"} & set(found.tags)
    assert all(link.startswith("#") for link in found.links)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", text)
    assert set(re.findall(r'\w+="https?:[^"]*"', text)) == {
        'xlink="http://www.w3.org/1999/xlink"',
        'xmlns="http://www.w3.org/2000/svg"',
    }


def test_no_name_breaks_out_of_the_page(hostile: Report, tmp_path: Path):
    found = page(tmp_path, [hostile, hostile])
    assert "script" not in found.tags
    assert "<script" in "".join(found.words)
    assert "&lt;script" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_is_deterministic(make: Make, tmp_path: Path):
    pages = []
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, "t", [make(), make(0.4, name="soup")])
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_settings_get_a_table_and_figures_each(make: Make, tmp_path: Path):
    found = page(tmp_path, [make(regime="one-start"), make(regime="independent")])
    assert found.tags.count("table") == 3
    assert "independent" in "".join(found.words)


def test_the_full_page_needs_no_network_and_names_its_pictures(
    full_page: Callable[[Path], None], tmp_path: Path
):
    full_page(tmp_path / "page.html")
    found = outline(tmp_path / "page.html")
    assert not {"script", "link", "iframe", "a", "object"} & set(found.tags)
    pictures = [link for link in found.links if not link.startswith("#")]
    assert len(pictures) == found.tags.count("img") == 12
    assert all(link.startswith("data:image/png;base64,") for link in pictures)
    assert len(found.alternatives) == 12 + found.tags.count("svg")
    assert all(found.alternatives)
    assert len(set(found.ids)) == len(found.ids)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in text
    assert "@media print" in text
    assert '<meta name="color-scheme" content="light dark">' in text


def test_the_full_page_has_every_section(
    full_page: Callable[[Path], None], tmp_path: Path
):
    full_page(tmp_path / "page.html")
    text = "\n".join(outline(tmp_path / "page.html").words)
    for part in (
        "The lead of ",
        "best member",
        "headroom recovered, %",
        "accuracy of the student minus the ensemble's, points",
        "Differences between methods",
        "Where student and ensemble differ most",
        "What was trained beside the student",
        "networks/gated.safetensors",
        "All settings, as --config reads them",
        "name: kd",
    ):
        assert part in text


def test_a_page_tells_what_was_tried(make: Make, tmp_path: Path):
    candidate = {
        "accuracy": 0.9,
        "nll": 0.3,
        "ece": 0.05,
        "kl": 0.1,
        "behind": 0.0,
        "behind_error": 0.0,
        "parameters": 1000,
        "macs": 2000,
        "latency_ms": 0.5,
        "train_seconds": 3.0,
        "train_images": 100,
    }
    choice = {
        "candidates": [
            candidate | {"method": "soup", "dominated": True},
            candidate | {"method": "kd", "settings": "8 passes", "dominated": False},
        ],
        "chosen": 1,
        "images": 500,
        "best_member": "b",
        "ensemble_accuracy": 0.95,
        "below_ensemble": 0.05,
        "below_ensemble_error": 0.01,
        "within": 0.01,
        "left_out": ["meal needs more time."],
    }
    words = page(tmp_path, [make(choice=choice)]).words
    for part in ("What was tried", "8 passes", "chosen", "dominated"):
        assert part in words
    assert "meal needs more time." in words


def test_a_page_without_reports_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="at least one report, but got none"):
        write_page(tmp_path / "page.html", "t", [])


def test_reports_without_costs_or_headroom_still_make_a_page(
    make: Make, tmp_path: Path
):
    report = make(
        0.9,
        cost={},
        reliability=None,
        ensemble=make().mean_teacher,
        headroom={"ensemble_minus_mean_teacher": 0.0, "recovered": None},
    )
    found = page(tmp_path, [report, report])
    assert "nothing to recover" in "".join(found.words)
    assert found.tags.count("svg") == 1


@pytest.mark.parametrize(
    ("accuracy", "sentence"),
    [
        (0.96, "One network by kd keeps 75% of the ensemble's gain .*replaces 2"),
        (0.91, "Not worth it: the best member is at least as good as kd"),
        (0.85, r"Not worth it: kd is no better than the mean member \(-5\.0 points"),
    ],
)
def test_the_verdict_is_plain(make: Make, accuracy: float, sentence: str):
    assert re.match(sentence, verdict(make(accuracy)))


@pytest.mark.parametrize(
    ("accuracy", "changes", "sentence"),
    [
        (
            0.85,
            {},
            r"kd \(85\.0% on validation\) is below the best member, b\.safetensors "
            r"\(90\.0%\), by 5\.0 ± 1\.0 points: ship that member, as --fallback best",
        ),
        (0.85, {"fallback": True}, ".* points: the student is that member instead, as"),
        (
            0.895,
            {},
            ".* 0.5 ± 1.0 points, within the noise of 500 validation images. One net",
        ),
        (
            0.9,
            {},
            r"kd \(90\.0%, NLL 0\.4000 on validation\) is below .* \(90\.0%, NLL 0\.30"
            r"00\), by 0\.1000 ± 0\.0200 nats\. One network by kd",
        ),
        (0.9, {"nll_error": 0.2}, ".* by 0.1000 ± 0.2000 nats, within the noise of"),
        (0.9, {"nll": 0.2}, "One network by kd keeps 75%"),
        (0.95, {}, "One network by kd keeps 75%"),
    ],
)
def test_a_student_below_the_best_member_is_told_first(
    make: Make, against, accuracy, changes, sentence
):
    found = verdict(make(against_best=against(accuracy, **changes)))
    assert re.match(sentence, found), found


def test_the_verdict_says_why_a_soup_of_strangers_fails(make: Make, against):
    report = make(name="soup", regime="independent", against_best=against(0.1))
    assert "the members do not share a start, so the mean" in verdict(report)


def test_page_and_card_show_what_was_found(make: Make, tmp_path: Path, findings):
    report = make(**findings)
    text = "\n".join(page(tmp_path, [report]).words)
    write_card(tmp_path / "card.md", report)
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    for shown in (text, card):
        assert "The members before the work" in shown
        assert "Do what b.safetensors does." in shown
        assert "halfway between the first two: barrier +2.000 nats" in shown
        assert "mean of all" not in shown  # of two, that is halfway
        assert "as given: barrier +2.000 nats, accuracy -75.0 points" in shown
        assert "hidden units aligned: barrier +0.500 nats, accuracy -15.0" in shown
    other = findings["diagnosis"].model_copy(update={"verdict": "Another."})
    several = page(tmp_path, [report, make(diagnosis=other)])
    assert "before the work" not in "".join(several.words)


def test_a_fallback_is_told_wherever_the_student_is_named(
    make: Make, tmp_path: Path, against
):
    fell = make(against_best=against(0.8, fallback=True))
    assert "best member, instead of kd" in page(tmp_path, [fell]).words
    write_card(tmp_path / "card.md", fell)
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "# Best of 2 teachers on digits, instead of kd" in card
    assert "this is that member, b.safetensors, as it was" in " ".join(card.split())
    labels = [line.label for line in aggregate([fell, make(against_best=None)])]
    assert sorted(labels) == ["kd", "kd, fell back"]


def test_a_reports_own_verdict_goes_first(make: Make):
    assert headline([make(verdict="Mine.")]) == "Mine."
