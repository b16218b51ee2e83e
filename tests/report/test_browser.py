"""The page as Chromium shows it, from disk, with the network blocked."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ailora.plots.chart_spec import Axis, Plot, Series
from ailora.report.build import build_page
from ailora.report.document import Chapter, ChapterSection, Charts
from ailora.report.document import Page as ReportPage
from ailora.report.html import write_page
from ailora.studies.trial import TrialSpec
from tests.report.conftest import Opened
from tests.report.sample_studies import TEXTS, plausible, run_folder, stored, study_file
from tests.studies.sample_trials import Result

pytestmark = pytest.mark.ci
Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a matrix of starts, two ranks, a failure, and hostile names."""
    folder = tmp_path_factory.mktemp("study")
    hostile = [{said: {"method": "ailora", "adapter.dropout": 0.1 * (i + 1)}} for i, said in enumerate(TEXTS)]
    methods = ["lora", "pissa", "milora", "ailora", "reversed", *hostile]

    def result(spec: TrialSpec) -> Result:
        failed = spec.condition.method == "reversed" and spec.learning_rate > 2e-3
        return f"ValueError: {' '.join(TEXTS)}" if failed else plausible(spec, evaluations=6)

    tasks = {TEXTS[0]: {}, "cola": {"data.max_train_samples": 9}}
    store, _ = stored(study_file(folder, methods=methods, tasks=tasks, seeds=[0, 1]), result)
    store.close()
    out = folder / "report.html"
    write_page(build_page([folder / "study"], bootstrap=False), out)
    return out


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with hostile names, configurations and samples."""
    folder = tmp_path_factory.mktemp("runs")
    samples = [{"prompt": said, "output": said, "references": [said]} for said in TEXTS]
    one = run_folder(folder / TEXTS[0].replace("/", "∕"), samples=samples)
    other = run_folder(folder / 'a"><img src=x onerror=alert(3)>', config={"model": TEXTS[2]})
    out = folder / "report.html"
    write_page(build_page([one, other, folder / "nowhere"]), out)
    return out


def sorts(page: Any, title: str, column: str) -> list[str]:
    """The cells of a column of a table, as they stand."""
    script = """([title, column]) => {
        const table = [...document.querySelectorAll("table")].find((t) => t.caption?.textContent === title);
        const place = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === column);
        return [...table.tBodies[0].rows].map((row) => row.cells[place].textContent.trim());
    }"""
    return page.evaluate(script, [title, column])


def head(page: Any, title: str, column: str) -> Any:
    table = page.locator("table", has=page.locator("caption", has_text=re.compile(f"^{title}$")))
    return table.locator("th", has=page.get_by_role("button", name=column, exact=True))


@pytest.mark.parametrize("which", ["study", "runs"])
def test_every_figure_is_drawn_and_nothing_is_fetched(opened: Open, request: pytest.FixtureRequest, which: str) -> None:
    report = opened(request.getfixturevalue(which))
    page = report.page
    # What is far below is not drawn yet.
    page.wait_for_selector(".chart[data-drawn]")
    total = page.locator(".chart").count()
    assert which == "runs" or page.locator(".chart[data-drawn]").count() < total
    report.draw()
    assert page.locator(".chart[data-drawn]").count() == total > 0
    for figure in page.locator(".chart").all():
        plot = figure.locator(".plot")
        values = plot.evaluate(
            """(plot) => plot.data.filter((t) => !t.meta?.band)
                .map((t) => (t.z ? t.z.flat() : [...t.x, ...t.y]).filter((v) => typeof v === "number").length)"""
        )
        assert values
        assert all(count > 0 for count in values)
        plot.scroll_into_view_if_needed()
        image = Image.open(io.BytesIO(plot.screenshot())).convert("RGB")
        # Marks, axes and texts: far more than a blank card with its border.
        assert len(image.getcolors(1 << 24) or []) > 50
        shares = sorted((count for count, _ in image.getcolors(1 << 24) or []), reverse=True)
        assert 1 - shares[0] / sum(shares) > 0.02
    report.check()


def test_names_from_outside_are_shown_and_do_nothing(opened: Open, study: Path, runs: Path) -> None:
    for file in (study, runs):
        report = opened(file)
        report.draw()
        page = report.page
        body = page.inner_text("body")
        assert TEXTS[2] in body or 'a"><img src=x onerror=alert(3)>' in body
        assert page.locator("main img, main script, main b, main i").count() == 0
        # Plotly has them as text too: ticks, legends and what hovering shows.
        drawn = page.evaluate("[...document.querySelectorAll('.plot svg text')].map((t) => t.textContent)")
        assert any("<script>" in text for text in drawn)
        page.locator(".numbers summary").first.click()
        report.check()


def test_hovering_shows_values(opened: Open, study: Path) -> None:
    report = opened(study)
    report.draw()
    plot = report.page.locator(".chart", has_text="Validation accuracy over learning rate").first.locator(".plot")
    plot.scroll_into_view_if_needed()
    where = plot.evaluate(
        """(plot) => {
            const { xaxis, yaxis } = plot._fullLayout, trace = plot.data.find((t) => !t.meta.band);
            const box = plot.getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis.d2p(trace.x[0]), box.y + yaxis._offset + yaxis.d2p(trace.y[0]),
                trace.name, trace.y[0]];
        }"""
    )
    report.page.mouse.move(where[0] + 1, where[1] + 1)
    report.page.wait_for_selector(".hoverlayer .hovertext")
    shown = report.page.locator(".hoverlayer .hovertext").first.text_content() or ""
    assert "learning rate: 0.0003" in shown
    assert re.search(r"validation accuracy: 0\.[0-9]{2,4}", shown)
    report.check()


def test_points_are_reached_by_keyboard(opened: Open, study: Path) -> None:
    report = opened(study)
    plot = report.page.locator(".chart", has_text="Validation accuracy over learning rate").first.locator(".plot")
    plot.focus()
    plot.press("ArrowRight")
    said = report.page.locator("#said")
    first = said.text_content() or ""
    assert first.startswith("lora, 0.0003: 0.")
    plot.press("ArrowRight")
    assert (said.text_content() or "").startswith("lora, 0.001: 0.")
    plot.press("ArrowDown")
    assert (said.text_content() or "").startswith("pissa, 0.001: 0.")
    assert report.page.locator(".hoverlayer .hovertext").count() == 1
    plot.press("Escape")
    assert report.page.locator(".hoverlayer .hovertext").count() == 0
    heat = report.page.locator(".chart", has_text="Query start x value start").first.locator(".plot")
    heat.press("ArrowRight")
    assert re.match(r"(random|principal|minor), .*: 0\.", said.text_content() or "")
    report.check()


def test_the_numbers_behind_a_chart_are_a_table(opened: Open, study: Path) -> None:
    report = opened(study)
    figure = report.page.locator(".chart", has_text="Validation accuracy over learning rate").first
    figure.locator(".numbers summary").click()
    rows = figure.locator(".numbers tr")
    rows.first.wait_for()
    assert rows.first.inner_text().startswith("lora, 0.0003\t0.")
    report.check()


def test_a_name_with_the_words_of_an_interval_stays_whole(opened: Open, tmp_path: Path) -> None:
    series = Series("lora, from scratch", [1], [2.0], [1.5], [2.5])
    chart = Plot("p", "Title", "lines", Axis("step"), Axis("loss"), (series,), "Caption.")
    page = ReportPage("P", (Chapter("P", "run", (ChapterSection("S", (Charts((chart,)),)),)),))
    write_page(page, tmp_path / "page.html")
    report = opened(tmp_path / "page.html")
    figure = report.page.locator(".chart").first
    figure.locator(".numbers summary").click()
    rows = figure.locator(".numbers tr")
    rows.first.wait_for()
    assert rows.first.inner_text() == "lora, from scratch, 1\t2, from 1.5000 to 2.5000"
    report.check()


def test_tables_sort_by_click_and_by_enter(opened: Open, study: Path) -> None:
    report = opened(study)
    page = report.page
    scores = head(page, "Scores", "score")
    assert scores.get_attribute("aria-sort") == "none"
    scores.get_by_role("button").click()
    assert scores.get_attribute("aria-sort") == "ascending"
    values = [float(cell.split()[0]) for cell in sorts(page, "Scores", "score") if cell != "-"]
    assert values == sorted(values)
    assert len(values) > 5
    scores.get_by_role("button").press("Enter")
    assert scores.get_attribute("aria-sort") == "descending"
    values = [float(cell.split()[0]) for cell in sorts(page, "Scores", "score") if cell != "-"]
    assert values == sorted(values, reverse=True)
    method = head(page, "Scores", "method")
    method.get_by_role("button").click()
    assert scores.get_attribute("aria-sort") == "none"
    names = sorts(page, "Scores", "method")
    assert names.index("ailora") < names.index("lora") < names.index("pissa")
    report.check()


def test_long_tables_have_pages_and_a_filter(opened: Open, study: Path) -> None:
    report = opened(study)
    page = report.page
    sheet = page.locator(".sheet", has=page.locator("caption", has_text="Every trial"))
    total = int(sheet.get_attribute("data-rows") or 0)
    assert total > 50
    visible = sheet.locator("tbody tr:not([hidden])")
    assert visible.count() == 50
    head(page, "Every trial", "learning rate").get_by_role("button").click()
    head(page, "Every trial", "learning rate").get_by_role("button").click()
    assert "0.003" in visible.first.inner_text()
    sheet.get_by_role("button", name="Next").click()
    assert sheet.locator(".at").inner_text().startswith("51 to ")
    sheet.get_by_role("searchbox").fill("pissa 0.001")
    assert 0 < visible.count() < 50
    assert all("pissa" in row and "0.001" in row for row in visible.all_inner_texts())
    report.check()


def luminance(colour: str) -> float:
    return sum(float(chapter) for chapter in re.findall(r"[0-9.]+", colour)[:3]) / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_switch(opened: Open, runs: Path, scheme: str) -> None:
    report = opened(runs, color_scheme=scheme)
    report.draw()
    page = report.page
    paint = "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    line = "() => getComputedStyle(document.querySelector('.plot .scatterlayer .js-line')).stroke"
    switch = page.locator("#theme")
    assert switch.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    before, line_before = page.evaluate(paint), page.evaluate(line)
    assert (luminance(before[0]) < 60) is (scheme == "dark")
    assert abs(luminance(before[0]) - luminance(before[1])) > 150
    assert abs(luminance(before[0]) - luminance(line_before)) > 150
    switch.press("Enter")
    page.wait_for_function(f"(old) => ({line})() !== old", arg=line_before)
    after, line_after = page.evaluate(paint), page.evaluate(line)
    assert (luminance(after[0]) < 60) is (scheme == "light")
    assert abs(luminance(after[0]) - luminance(line_after)) > 150
    assert switch.get_attribute("aria-pressed") == str(scheme == "light").lower()
    report.check()


@pytest.mark.parametrize("which", ["study", "runs"])
def test_a_phone_needs_no_sideways_scrolling(opened: Open, request: pytest.FixtureRequest, which: str) -> None:
    report = opened(request.getfixturevalue(which), viewport={"width": 390, "height": 844})
    report.draw()
    page = report.page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width == [390, 390]
    beyond = page.evaluate(
        """[...document.querySelectorAll("main *")].filter((one) => !one.closest(".scroll, pre, svg, .plot, .hidden")
            && one.getBoundingClientRect().right > 391).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert beyond == []
    # A wide table scrolls in its own box.
    assert page.evaluate("[...document.querySelectorAll('.scroll')].some((box) => box.scrollWidth > box.clientWidth)")
    report.check()


def test_the_page_is_walked_by_keyboard(opened: Open, runs: Path) -> None:
    report = opened(runs)
    page = report.page
    seen: list[str] = []
    at = "(({ className, id, tagName }) => className || id || tagName)(document.activeElement)"
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(at))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert seen[:3] == ["skip", "theme", "SUMMARY"]
    assert any(name.startswith("plot") for name in seen)
    assert "scroll" in seen
    page.locator(".skip").press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    report.check()


def test_everything_has_a_name_for_screen_readers(opened: Open, study: Path) -> None:
    report = opened(study)
    unnamed = report.page.evaluate(
        """[...document.querySelectorAll("[role=region], [role=group], nav, section, table, button, input")]
            .filter((one) => !one.getAttribute("aria-label") && !one.caption && !one.textContent.trim()
                && !document.getElementById(one.getAttribute("aria-labelledby") || ""))
            .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    levels = report.page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    report.check()


def test_printing_draws_everything_in_light(opened: Open, study: Path) -> None:
    report = opened(study, color_scheme="dark")
    page = report.page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelectorAll('.chart:not([data-drawn])').length === 0")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") is None
    report.check()
