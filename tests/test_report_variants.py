"""A report about many runs: those that differ only in the seed are one variant, and the page stays short."""

import json
import re
import shutil
from pathlib import Path

import pytest
from eval_toys import ToySplit
from report_runs import edit, write_run, write_surface

from nfc_splat.files import read_json
from nfc_splat.report.folder import read_runs
from nfc_splat.report.page import Table, write_report
from nfc_splat.report.settings import differences
from nfc_splat.report.summary import summarize
from nfc_splat.report.surface import surfaces
from nfc_splat.report.variants import representatives, variant_blocks, variant_columns, variants_of
from nfc_splat.report.views import view_groups

LOSSES = ("regression", "classification", "regression_5_x")
SEEDS = (42, 43, 44)


def vary(run: Path, **settings) -> None:
    edit(run / "config.json", train=read_json(run / "config.json")["train"] | settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three losses with three seeds: PSNR is 20, 21, 22 by the seed, and 10 more by the loss."""
    folder = tmp_path_factory.mktemp("sweep")
    first = write_run(folder / "one", split=ToySplit(5))
    for index, loss in enumerate(LOSSES):
        for number, seed in enumerate(SEEDS):
            run = Path(shutil.copytree(first, folder / f"room-dvgo-{loss}-{seed}"))
            vary(run, loss=loss, seed=seed)
            edit(run / "eval" / "summary.json", psnr=20.0 + number + 10 * index, ssim=0.5)
    shutil.rmtree(first)
    return folder


@pytest.fixture
def sweep(made, tmp_path) -> list[Path]:
    """Copies that a test may change."""
    copied = shutil.copytree(made, tmp_path / "sweep")
    return [copied / f"room-dvgo-{loss}-{seed}" for loss in LOSSES for seed in SEEDS]


def table(folders: list[Path]):
    runs = read_runs(folders)
    return variant_blocks(summarize(runs), runs, variants_of(runs))


def test_runs_that_differ_in_the_seed_alone_are_one_variant(sweep):
    vary(sweep[0], threads=7, out="elsewhere")
    found = variants_of(read_runs([*sweep[:3], *sweep[:2:-1]]))
    assert [(one.name, one.runs) for one in found] == [
        ("regression", (0, 1, 2)),
        ("regression_5_x", (3, 4, 5)),
        ("classification", (6, 7, 8)),
    ]
    assert [one.runs for one in variants_of(read_runs(sweep[:8]))] == [(index,) for index in range(8)]
    vary(sweep[0], model={"steps": 7})
    edit(sweep[4] / "config.json", processes=2)
    assert [(one.name, one.runs) for one in variants_of(read_runs(sweep))][:4] == [
        ("regression-42", (0,)),
        ("regression", (1, 2)),
        ("classification", (3, 5)),
        ("classification-43", (4,)),
    ]


def test_runs_measured_otherwise_are_apart_and_unfinished_ones_are_not(sweep):
    protocol = read_json(sweep[1] / "eval" / "summary.json")["protocol"]
    edit(sweep[1] / "eval" / "summary.json", protocol=protocol | {"bit_depth": "other"})
    (sweep[3] / "eval" / "summary.json").unlink()
    found = variants_of(read_runs(sweep))
    assert [one.runs for one in found] == [(0, 2), (1,), (3, 4, 5), (6, 7, 8)]
    assert len({one.name for one in found}) == 4
    assert representatives(read_runs(sweep), found)[4] == found[2].name  # the first that has views


def test_nothing_is_known_of_runs_without_configuration(sweep):
    for run in sweep:
        (run / "config.json").write_text('{"train": 7}')
    assert [one.runs for one in variants_of(read_runs(sweep))] == [(index,) for index in range(9)]


def test_the_table_has_means_and_standard_deviations(sweep):
    (sweep[8] / "eval" / "summary.json").unlink()
    (block,) = table(sweep)
    assert [(row.cells["psnr"].text, row.cells["psnr"].spread, row.cells["psnr"].best) for row in block.rows] == [
        ("21.00", "± 1.00", False),
        ("31.00", "± 1.00", False),
        ("40.50", "± 0.71", True),
    ]
    assert [row.cells["runs"].text for row in block.rows] == ["3", "3", "2 of 3"]
    assert not any(row.cells["ssim"].best for row in block.rows)  # equal
    assert block.rows[0].cells["train_seconds"].text == "1m23s"
    assert list(variant_columns({"psnr": "PSNR", "steps": "Steps", "seed": "Seed"})) == ["psnr", "runs", "steps"]


def test_numbers_too_large_to_be_averaged_are_none(sweep):
    for run, psnr in zip(sweep, ("1e308", "1e308", "21.0"), strict=False):
        path = run / "eval" / "summary.json"
        path.write_text(path.read_text().replace(f'"psnr": {read_json(path)["psnr"]}', f'"psnr": {psnr}'))
    cell = table(sweep)[0].rows[0].cells["psnr"]
    assert (cell.text, cell.spread) == ("-", "")


def test_a_mean_is_of_all_runs_or_not_shown(sweep):
    for run in sweep[1:]:
        edit(run / "eval" / "summary.json", lpips=0.25)
    first, second, _ = table(sweep)[0].rows
    assert (first.cells["lpips"].text, first.cells["runs"].text) == ("-", "3")
    assert (first.cells["lpips"].value, first.cells["lpips"].best) == (None, False)
    assert first.cells["psnr"].text == "21.00"
    assert second.cells["lpips"].text == "0.2500"


def test_settings_and_surfaces_of_variants(sweep):
    for run, accuracy in zip(sweep, (0.01, 0.02, 0.03, 0.02, 0.02, 0.02), strict=False):
        write_surface(run, accuracy=accuracy)
    runs = read_runs(sweep)
    variants = variants_of(runs)
    (row,) = differences(runs, [one.runs for one in variants]).rows
    assert (row.name, row.values) == ("loss", LOSSES)  # every variant has the same seeds
    (seeds,) = [row for row in differences(runs, [(0, 1), (2,)]).rows if row.name == "seed"]
    assert seeds.values == ("42, 43", "44")
    found = surfaces(runs, [(one.name, one.runs) for one in variants]).found
    cells = [surface.rows[("accuracy", "cm")] for surface in found]
    assert [(surface.name, surface.count) for surface in found] == [("regression", 3), ("classification", 3)]
    assert [(cell.value, cell.interval) for cell in cells] == [("2.005", "1"), ("2.005", "0")]


@pytest.mark.parametrize(("measured", "alone", "several"), [(1, True, False), (4, True, True), (6, False, True)])
def test_the_spread_of_a_surface_is_called_what_it_is(sweep, tmp_path, measured, alone, several):
    """By how many runs of the first two variants, of three runs each, have a surface."""
    for run in sweep[:measured]:
        write_surface(run)
    page = write_report(sweep, tmp_path / "page.html").read_text()
    (head,) = re.findall(r'<table class="surfaces">.*?</thead>', page, re.DOTALL)
    counts = [count for count in (min(measured, 3), measured - 3) if count > 0]
    assert re.findall(r"<abbr [^>]*>(.*?)</abbr>", head) == ["±" if count == 1 else "s.d." for count in counts]
    assert ("±: 95 % of evaluations with other seeds" in page) == alone
    assert ("s.d.: standard deviation over the runs of a variant" in page) == several
    assert head.count("standard deviation over 3 runs") == counts.count(3)


def test_the_views_of_one_run_of_each_variant_are_shown_and_all_three_kinds(sweep):
    runs = read_runs(sweep)
    (group,) = view_groups(runs, representatives(runs, variants_of(runs)))
    assert [column.name for column in group.views[0].columns] == list(LOSSES)
    assert [column.run for column in group.views[0].columns] == [0, 3, 6]
    assert {tag for shown in group.views for tag in shown.columns[0].tags} == {"worst", "median", "best"}


def test_rather_fewer_runs_than_no_median(sweep, tmp_path):
    many = [Path(shutil.copytree(sweep[0], tmp_path / f"run{index}")) for index in range(40)]
    for index, run in enumerate(many):  # each its own worst, median and best
        rows = read_json(run / "eval" / "per_view.json")
        changed = [row | {"psnr": 20.0 + (position + index) % 5} for position, row in enumerate(rows)]
        (run / "eval" / "per_view.json").write_text(json.dumps(changed))
    (group,) = view_groups(read_runs(many))
    assert len(group.views) == 3
    tags = [tag for shown in group.views for column in shown.columns for tag in column.tags]
    assert {"worst", "median", "best"} <= set(tags)
    assert "Pictures of the first 26 of these 40" in group.notes[0]
    assert [len(view_groups(read_runs(many[:count]))[0].views) for count in (8, 9)] == [5, 3]


# ----------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address(made) -> str:
    """A comparison's page."""
    rows = [["method", "", "PSNR", "SSIM", "dPSNR"]]
    rows += [["dvgo", loss.replace("_", " "), "26.43 ± 0.11", "0.812 ± 0.003", "+0.22 ± 0.05"] for loss in LOSSES]
    runs = [made / f"room-dvgo-{loss}-{seed}" for loss in LOSSES for seed in SEEDS]
    tables = [Table("room: loss and target encoding apart", rows, numbers=(2, 3, 4))]
    return write_report(runs, made / "page.html", tables=tables).as_uri()


def test_a_phone_shows_results_beside_the_names(browser_page, address):
    visit = browser_page(address, width=390, height=844, has_touch=True)
    page = visit.page
    assert page.locator("#results thead th").first.inner_text() == "method, variant"
    assert page.locator("#summary thead th").first.inner_text() == "Variant"
    for place in ("#results td.number", '#summary td[data-key="psnr"]'):
        box = page.locator(place).first.bounding_box()
        assert 0 < box["x"] < box["x"] + box["width"] < 390 - 16
    table = page.locator("#results .scroll")
    before = table.locator("th[scope=row]").first.bounding_box()["x"]
    table.evaluate("(e) => { e.scrollLeft = 200; }")
    assert table.evaluate("(e) => e.scrollLeft") > 20
    assert table.locator("th[scope=row]").first.bounding_box()["x"] == pytest.approx(before, abs=2)
    assert visit.overflow == 0
    assert (visit.errors, visit.refused) == ([], [])


def test_curves_have_a_line_and_a_band_for_each_variant(browser_page, address):
    visit = browser_page(address)
    page = visit.page
    assert page.locator(".legend label").all_inner_texts() == list(LOSSES)
    chart = page.locator(".chart").nth(1)
    assert (chart.locator("path.line").count(), chart.locator("path.band").count()) == (3, 3)
    read, svg = chart.locator(".read"), chart.locator("svg")
    assert read.inner_text().strip() == ""
    height = page.evaluate("document.documentElement.scrollHeight")
    svg.focus()
    svg.press("End")
    assert read.locator(".entry .name").all_inner_texts() == list(LOSSES)
    assert page.evaluate("document.documentElement.scrollHeight") == height  # over the page, which stays where it is
    page.locator(".legend input").first.uncheck()  # takes the focus away
    assert read.inner_text().strip() == ""
    assert not chart.locator('path.band[data-variant="0"]').is_visible()
    assert (visit.errors, visit.refused) == ([], [])


def test_single_runs_are_folded_up_until_a_link_leads_there(browser_page, address):
    page = browser_page(address).page
    runs = page.locator("table.runs")
    assert not runs.is_visible()
    assert page.locator("table.variants tbody tr").count() == 3
    page.get_by_text("All 9 runs").click()
    assert runs.locator("tbody tr").count() == 9
    assert not page.locator("#run-4").is_visible()
    runs.locator("a").nth(4).click()
    page.locator("#run-4").wait_for()  # wait_for_function needs an eval, which the page forbids
    assert page.locator("#run-4 h3").inner_text() == "room-dvgo-classification-43"
    dots = [page.locator(place).first.get_attribute("class") for place in ("#run-4 .dot", "#variant-1 > summary .dot")]
    assert dots == ["dot c1 d0"] * 2
    page.locator("table.variants a").nth(2).click()
    page.locator("#variant-2[open]").wait_for()
    assert page.evaluate(
        "[...document.querySelectorAll('a[href]')].every((a) => document.querySelector(a.getAttribute('href')))"
    )
