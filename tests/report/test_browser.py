"""The page in a real browser: sorting, filtering, the choice of a target; nothing is fetched, nobody complains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.chromium import PROGRAM, WHY, Page, browser
from tests.report.documents import document
from xdeploy.report import html

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=WHY)
TARGETS = ("cortex-m4", "cortex-a72")
ROWS = "[...document.querySelector('#layers').tBodies[0].rows]"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html.render(document(*TARGETS)), encoding="utf-8")
    return path


def column(page: Page, title: str) -> list[str]:
    """A column of the rows that are shown, from the top."""
    at = page.value(f"[...document.querySelectorAll('#layers th')].findIndex(h => h.innerText.startsWith('{title}'))")
    assert at >= 0, title
    return list(page.value(f"{ROWS}.filter(r => !r.hidden).map(r => r.cells[{at}].textContent)"))


def click(page: Page, title: str) -> str:
    """Click on a heading; tells how the column is sorted then."""
    head = f"[...document.querySelectorAll('#layers th')].find(h => h.innerText.startsWith('{title}'))"
    page.value(f"{head}.querySelector('button').click()")
    return str(page.value(f"{head}.getAttribute('aria-sort')"))


def numbers(cells: list[str]) -> list[float]:
    return [float(c.replace(",", "")) for c in cells if c != "–"]


def test_nothing_is_fetched_and_nobody_complains(page: Page, report: Path) -> None:
    page.open(report)
    for title in ("origin", "bytes", "relevance"):
        click(page, title)
    assert page.value("document.title").startswith("xdeploy: ")
    assert page.complaints() == []
    assert page.requests() == [report.resolve().as_uri()]


def test_the_policy_stops_other_scripts_and_addresses(page: Page, report: Path, tmp_path: Path) -> None:
    """The same page with a script and a picture smuggled in: neither runs nor loads, and the browser says so."""
    bad = "<script>document.title = 'taken'</script><img src='https://example.invalid/x.png'>"
    path = tmp_path / "bad.html"
    path.write_text(report.read_text(encoding="utf-8").replace("<h1>", f"{bad}<h1>"), encoding="utf-8")
    page.open(path)
    assert page.value("document.title") != "taken"
    assert len(page.complaints()) >= 2


def test_sorting(page: Page, report: Path) -> None:
    page.open(report)
    first = column(page, "origin")
    assert click(page, "MACs") == "descending"
    assert numbers(column(page, "MACs")) == sorted(numbers(column(page, "MACs")), reverse=True)
    assert column(page, "origin") != first
    assert click(page, "MACs") == "ascending"
    assert numbers(column(page, "MACs")) == sorted(numbers(column(page, "MACs")))
    assert click(page, "MACs") == "none"
    assert column(page, "origin") == first
    assert click(page, "origin") == "ascending"
    names = [n for n in column(page, "origin") if n.startswith("layer")]
    assert names == sorted(names)
    for expected in ("descending", "ascending"):  # what is not known comes last, whichever way
        assert click(page, "relevance") == expected
        assert column(page, "relevance")[-1] == "–"
    assert len(column(page, "origin")) == len(first)


def test_filtering(page: Page, report: Path) -> None:
    page.open(report)

    def filtered(words: str) -> list[str]:
        page.value(
            "(() => { const i = document.querySelector('input[type=search]');"
            f" i.value = '{words}'; i.dispatchEvent(new Event('input')); }})()"
        )
        return column(page, "origin")

    everything = column(page, "origin")
    assert filtered("relu") == ["layer03.conv"]
    assert filtered("INT4 conv2d layer04") == ["layer04.conv"]
    assert page.value("document.querySelector('[aria-live]').textContent") == "1 of 6 rows"
    assert filtered("kernel2__cortex-a72") == []  # of the target that is not shown
    assert filtered("no such layer") == []
    assert filtered("") == everything


def test_one_target_at_a_time(page: Page, report: Path) -> None:
    page.open(report)
    shown = "[...document.querySelectorAll('[data-name]')].filter(e => !e.hidden).map(e => e.dataset.name)"
    heads = "[...document.querySelectorAll('#layers th')].filter(e => !e.hidden).map(e => e.innerText.trim()).join('|')"
    assert page.value(shown) == ["cortex-m4"]
    assert "cortex-a72" not in page.value(heads)
    page.value(
        "(() => { const s = document.querySelectorAll('select')[1]; s.selectedIndex = 1;"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert page.value(shown) == ["cortex-a72"]
    assert "cortex-m4" not in page.value(heads)
    assert page.value("[...document.querySelectorAll('select')].map(s => s.value)") == ["cortex-a72"] * 3
    click(page, "kernel")
    assert column(page, "kernel, cortex-a72")[0] == "kernel0__cortex-a72"


def test_a_single_target_needs_no_choice(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "one.html"
    path.write_text(html.render(document("cortex-m4")), encoding="utf-8")
    page.open(path)
    assert page.value("document.querySelectorAll('select').length") == 0
    assert page.value("document.querySelectorAll('[data-t][hidden]').length") == 0


def test_everything_is_there_without_script(page: Page, report: Path) -> None:
    page.open(report, script=False)
    snapshot = page.send("DOM.getDocument", depth=1)["root"]["nodeId"]
    body = page.send("DOM.querySelector", nodeId=snapshot, selector="body")["nodeId"]
    whole = page.send("DOM.getOuterHTML", nodeId=body)["outerHTML"].partition("<script>")[0]
    assert " hidden" not in whole
    assert "<button" not in whole
    assert all(f"kernel2__{name}" in whole for name in TARGETS)


@pytest.mark.parametrize("media", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(page: Page, report: Path, media: str) -> None:
    """Tables scroll by themselves; the page is as wide as the screen, and its letters stand out from the paper."""
    page.open(report, 390, 800, media)
    assert page.value("document.documentElement.scrollWidth") == 390
    ink, paper = (page.value(f"getComputedStyle(document.body).{k}") for k in ("color", "backgroundColor"))
    lightness = [sum(int(v) for v in c[4:-1].split(",")) / 3 for c in (ink, paper)]
    assert (lightness[0] < lightness[1]) == (media == "light")
    assert abs(lightness[0] - lightness[1]) > 180
    small = page.value(
        "[...document.querySelectorAll('svg.chart text')].map(t => t.getBoundingClientRect().height)"
        ".filter(h => h > 0 && h < 8)"
    )
    assert small == []


def test_print_unfolds_everything(page: Page, report: Path, tmp_path: Path) -> None:
    page.open(report)
    assert page.value("document.querySelectorAll('details[open]').length") == 0
    page.value("dispatchEvent(new Event('beforeprint'))")
    assert page.value("document.querySelectorAll('details:not([open])').length") == 0
    page.value("dispatchEvent(new Event('afterprint'))")
    assert page.value("document.querySelectorAll('details[open]').length") == 0
    page.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
