"""The report in a real browser: nothing fails, nothing is fetched, sliders and curves answer, phones show all of it."""

import json
import shutil
from pathlib import Path

import pytest
from eval_toys import ToySplit
from report_runs import HOSTILE, STEPS, hostile_run, write_run, write_surface

from nfc_splat.report.page import Plot, Table, write_report

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="300"><script>parent.hacked = 1</script></svg>'
# Contrast of every text with what lies behind it, as WCAG 2 defines it; the texts that fall short of 4.5.
CONTRAST = """() => {
  const numbers = (color) => color.match(/[0-9.]+/g).map(Number);
  const linear = (value) => (value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (color) => {
    const [r, g, b] = numbers(color).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if ((numbers(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const ink = node.closest("svg") ? getComputedStyle(node).fill : getComputedStyle(node).color;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.matches("script, option")) continue;
    const [a, b] = [luminance(ink), luminance(behind(node))];
    seen += 1;
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) poor.push(walker.currentNode.data.trim().slice(0, 40));
  }
  return [seen, poor];
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of each kind that a report meets."""
    folder = tmp_path_factory.mktemp("runs")
    size = (80, 60)
    write_run(folder / "plain", split=ToySplit(size=size))
    settings = {"loss": "classification", "loss_weight": 2.0}
    write_run(folder / "a-run-with-a-name-that-is-rather-long-to-show", split=ToySplit(size=size), train=settings)
    write_run(folder / "stopped", measured=False)
    write_run(folder / "other", protocol="graphdeco")
    shutil.rmtree(folder / "other" / "depth")
    write_surface(folder / "plain")
    write_surface(folder / "other", truth="other.ply")
    return folder


@pytest.fixture(scope="module")
def single(folder) -> str:
    return write_report([folder / "plain"], folder / "single.html").as_uri()


@pytest.fixture(scope="module")
def several(folder) -> str:
    rows = [["method", *(f"column {index}" for index in range(20))], ["dvgo", *("31.5" for _ in range(20))]]
    runs = sorted(path.parent for path in folder.glob("*/config.json"))
    tables, plots = [Table("All of it", rows, notes=["made up"])], [Plot("PSNR over nothing", SVG)]
    return write_report(runs, folder / "several.html", tables=tables, plots=plots).as_uri()


def text(page, selector: str) -> str:
    return page.locator(selector).first.inner_text()


def test_one_run_on_a_desktop(browser_page, single, folder):
    visit = browser_page(single)
    page = visit.page
    summary = json.loads((folder / "plain" / "eval" / "summary.json").read_text())
    assert page.title() == "room, 3dgs, regression"
    assert text(page, ".tile[data-key=psnr] dd") == f"{summary['psnr']:.2f} dB"
    assert [text(page, f"#{name} h2") for name in ("summary", "curves", "views", "surface", "origin")] == [
        "Summary",
        "Curves",
        "Views",
        "Surface",
        "Origin",
    ]
    assert page.locator(".view").count() == 3
    assert page.locator(".chart svg").count() == 4
    assert page.evaluate("[...document.images].filter((i) => !i.complete || i.naturalWidth === 0).length") == 0
    assert page.locator("details").nth(1).get_attribute("open") is None
    page.locator("details summary").nth(1).click()
    assert '"max_primitives": 500' in text(page, ".config")
    assert visit.overflow == 0
    assert (visit.errors, visit.refused) == ([], [])


def test_the_slider_answers_keys_and_the_pointer(browser_page, single):
    visit = browser_page(single)
    page, slider = visit.page, visit.page.locator("[data-slider]").first
    left, right, range_ = (slider.locator(part) for part in ("img.left", "img.right", "input"))
    assert left.get_attribute("src") == page.locator("#p0-0-truth").get_attribute("src")
    assert right.get_attribute("src") == page.locator("#p0-0-render-0").get_attribute("src")
    shown = lambda: page.evaluate("(e) => getComputedStyle(e).clipPath", left.element_handle())  # noqa: E731
    before = shown()
    range_.focus()
    range_.press("Home")
    assert range_.input_value() == "0"
    assert shown() != before
    for _ in range(4):
        range_.press("ArrowRight")
    assert range_.input_value() == "2"
    assert range_.get_attribute("aria-valuetext") == "2 %: truth left, render right"
    box = slider.locator(".stage").bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
    assert float(range_.input_value()) == pytest.approx(75, abs=1)
    line = slider.locator(".line").bounding_box()
    assert line["x"] + line["width"] / 2 == pytest.approx(box["x"] + 0.75 * box["width"], abs=0.01 * box["width"])
    slider.locator("select").nth(1).select_option(label="error")
    assert right.get_attribute("src") == page.locator("#p0-0-error-0").get_attribute("src")
    assert (visit.errors, visit.refused) == ([], [])


def test_curves_are_read_with_the_pointer_and_the_keys(browser_page, several):
    visit = browser_page(several)
    page = visit.page
    chart = page.locator(".chart").nth(1)
    assert chart.locator("figcaption").inner_text() == "PSNR of training batches (dB)"
    before = chart.locator(".read").inner_text()
    svg = chart.locator("svg")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    unit = box["width"] / 420
    page.mouse.move(box["x"] + unit * (46 + 0.25 * (420 - 46 - 12)), box["y"] + 0.5 * box["height"])
    said = chart.locator(".read").inner_text()
    assert f"step {STEPS // 4}" in said
    assert said.count(f"{10 + 0.02 * STEPS / 4:.2f}") == 4  # every run logged the same
    assert chart.locator(".cursor circle").count() == 4
    page.mouse.move(5, 5)
    assert chart.locator(".read").inner_text() == before
    svg.focus()
    svg.press("Home")
    assert "step 0" in chart.locator(".read").inner_text()
    svg.press("End")
    assert f"step {STEPS}" in chart.locator(".read").inner_text()
    svg.press("Escape")
    page.locator(".legend input").first.uncheck()
    assert not chart.locator('path.raw[data-variant="0"]').is_visible()
    assert chart.locator('g[data-variant="1"] path.line').is_visible()
    assert (visit.errors, visit.refused) == ([], [])


def test_several_runs_side_by_side(browser_page, several):
    visit = browser_page(several)
    page = visit.page
    assert "Not everything here can be compared" in text(page, "#summary .warning")
    assert page.locator("table.runs tbody tr").count() == 2 + 4  # two blocks, four runs
    assert page.locator(".view.many .column b.name").all_inner_texts()[:2] == [
        "a-run-with-a-name-that-is-rather-long-to-show",
        "plain",
    ]
    assert page.locator(".view.many select option").count() > 0
    assert "Not finished" in text(page, "#summary .problem")
    assert "classification" in text(page, "table.settings")
    assert page.evaluate("window.hacked") is None
    unlabelled = (
        "[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length && !e.ariaLabel).length"
    )
    assert page.evaluate(unlabelled) == 0
    assert page.evaluate("[...document.images].filter((i) => !i.hasAttribute('alt')).length") == 0
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    assert visit.overflow == 0
    assert (visit.errors, visit.refused) == ([], [])


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser_page, single, several, width):
    for url in (single, several):
        visit = browser_page(url, width=width, height=800, has_touch=True)
        assert visit.overflow == 0
        assert visit.page.evaluate("[...document.images].every((i) => i.getBoundingClientRect().width <= innerWidth)")
        stage = visit.page.locator(".stage").first
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        visit.page.touchscreen.tap(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
        assert float(stage.locator("input").input_value()) == pytest.approx(20, abs=2)
        assert (visit.errors, visit.refused) == ([], [])
    wide = visit.page.locator("#results .scroll").first
    assert wide.evaluate("(e) => e.scrollWidth > e.clientWidth")  # the table scrolls in its box


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(browser_page, several, scheme):
    visit = browser_page(several, color_scheme=scheme)
    seen, poor = visit.page.evaluate(CONTRAST)
    assert seen > 200
    assert poor == []
    page = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, page[4:-1].split(","))) < 200) == (scheme == "dark")


def test_without_scripts_all_but_the_sliders_is_there(browser_page, single):
    visit = browser_page(single, java_script_enabled=False)
    page = visit.page
    assert "need scripts" in text(page, "noscript")
    assert not page.locator(".slider").first.is_visible()
    assert page.locator(".four img").count() == 12
    assert page.locator("path.line").first.is_visible()
    assert "at the end" in text(page, ".read")


@pytest.mark.parametrize("copies", [0, 7])
def test_hostile_names_do_nothing(browser_page, tmp_path, copies):
    runs = [hostile_run(tmp_path / name.replace("/", "")) for name in HOSTILE[:2]]
    runs += [Path(shutil.copytree(runs[0], f"{runs[0]}{index}")) for index in range(copies)]
    dialogs = []
    visit = browser_page("about:blank", allowed=("file:", "about:"))
    visit.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    visit.page.goto(write_report(runs, tmp_path / "page.html", title=HOSTILE[0]).as_uri())
    for choice in visit.page.locator("select").all():
        choice.focus()
    visit.page.locator(".chart svg").first.hover()
    assert dialogs == []
    assert visit.page.title() == HOSTILE[0]
    assert text(visit.page, "h1") == HOSTILE[0]
    assert visit.page.locator("img[src=x], [onerror], [onmouseover]").count() == 0
    assert (visit.errors, visit.refused) == ([], [])
