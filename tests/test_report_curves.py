"""Lines over steps: read, smoothed, thinned, laid out."""

import json
import random

import pytest

from nfc_splat.report.curves import (
    HEIGHT,
    LEFT,
    WIDTH,
    Axis,
    Log,
    Series,
    _linear,
    _logarithmic,
    _short,
    charts,
    extremes,
    read_log,
    smoothed,
    thinned,
)


def series(function, count):
    return Series(list(range(1, count + 1)), [function(step) for step in range(1, count + 1)])


def test_a_straight_line_is_not_changed_by_smoothing_but_for_its_end():
    smooth, window = smoothed(series(lambda step: 3.0 * step - 7, 400))
    assert window == 21
    assert smooth.values[:-10] == pytest.approx([3.0 * step - 7 for step in range(1, 391)])
    assert smooth.values[-1] == pytest.approx(3.0 * 395 - 7)  # the mean of the last eleven


def test_smoothing_takes_noise_away_at_the_end_too():
    noise = random.Random(0)
    rough = series(lambda step: 20 + noise.gauss(0, 1), 800)
    smooth, window = smoothed(rough)
    spread = lambda values: sum((value - 20) ** 2 for value in values) / len(values)  # noqa: E731
    assert spread(smooth.values) < 2 * spread(rough.values) / window
    assert smooth.values[0] == rough.values[0]
    assert abs(smooth.values[-1] - 20) < 0.5


def test_few_points_are_left_as_they_are():
    few = series(lambda step: step % 2, 30)
    assert smoothed(few) == (few, 1)


def test_thinning_keeps_the_ends_and_the_outliers():
    spiky = series(lambda step: 100.0 if step == 777 else 0.0, 5000)
    assert len(thinned(spiky, 200)) == 200
    assert (thinned(spiky, 200).steps[0], thinned(spiky, 200).steps[-1]) == (1, 5000)
    assert max(extremes(spiky, 160).values) == 100.0
    assert len(extremes(spiky, 160)) <= 320


def test_after_a_roll_back_the_abandoned_steps_are_gone():
    found = Series()
    for step, value in ((10, 1.0), (20, 2.0), (30, 3.0), (20, 5.0), (30, 6.0)):
        found.add(step, value)
    assert found == Series([10, 20, 30], [1.0, 5.0, 6.0])


def test_keys_are_kept_apart(tmp_path):
    lines = [{"step": 10, "loss": 0.5, "psnr": 20.0}, {"step": 10, "test_psnr": 19.0, "train_psnr": 21}]
    lines += [{"step": 20, "loss": None, "psnr": True}, {"step": 30, "loss": 1e400}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:3]) + '{"step": 30, "loss": 1e400}\n')
    log = read_log(path)
    assert log.series == {
        key: Series([10.0], [value])
        for key, value in (("loss", 0.5), ("psnr", 20.0), ("test_psnr", 19.0), ("train_psnr", 21.0))
    }
    assert log.last_step == 10


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (11.4, 33.9), (-3, 2), (19320, 19320), (1e-9, 3e-9), (0, 0), (5, 5e6)]
)
def test_axes_hold_all_values_between_round_ticks(low, high):
    axis, ticks = _linear(low, high, 100, 0, 5)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    assert axis.at(ticks[0]) == 100
    assert axis.at(ticks[-1]) == pytest.approx(0)
    assert 0 <= axis.at(high) <= axis.at(low) <= 100


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.5), (1e-7, 3.0), (0.3, 90.0)])
def test_logarithmic_axes(low, high):
    axis, ticks = _logarithmic(low, high, 100, 0, 5)
    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(ticks) <= 9
    middle = (low * high) ** 0.5
    assert axis.at(middle) == pytest.approx((axis.at(low) + axis.at(high)) / 2)


def test_ticks_are_short():
    assert [_short(value) for value in (0, 0.05, 8000, 20000, 2.5e6, 1e-5)] == [
        "0",
        "0.05",
        "8000",
        "20k",
        "2.5M",
        "1e-05",
    ]


def test_all_runs_are_in_one_chart_and_within_it():
    found = [series(lambda step: 10 / step, 500), series(lambda step: 10 / (step + 5), 500)]
    logs = [Log({"loss": loss}, 500, ()) for loss in found]
    logs.append(Log({}, None, ("missing",)))
    (chart,) = charts([[log] for log in logs], ["a", "b", "c"])
    assert [line.variant for line in chart.lines] == [0, 1]
    assert chart.y.log
    assert "b ends at 0.0200 at step 500" in chart.description
    for line in chart.lines:
        for path in (line.path, line.raw):
            points = [tuple(map(float, pair.split())) for pair in path[1:].split("L")]
            assert all(LEFT - 1e-6 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
            assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_measurements_now_and_then_are_dots_and_not_smoothed():
    found = {"test_psnr": series(float, 100), "train_psnr": series(lambda step: step + 1.0, 100)}
    (chart,) = charts([[Log(found, 100, ())]], ["a"])
    assert [line.dashed for line in chart.lines] == [False, True]
    assert chart.lines[0].points.values == [float(step) for step in range(1, 101)]
    assert len(chart.lines[0].dots) == 100
    assert "Dashed: training views" in chart.note


def test_runs_of_a_variant_are_their_mean_with_a_band():
    short = series(lambda step: 4.0 + step, 50)  # was stopped
    logs = [
        Log({"primitives": one}, 100, ()) for one in (series(float, 100), series(lambda step: 2.0 + step, 100), short)
    ]
    (chart,) = charts([logs], ["a"], crowded=True)
    (line,) = chart.lines
    assert line.points.steps == list(range(1, 101))
    assert line.points.values == pytest.approx([step + (2 if step <= 50 else 1) for step in range(1, 101)])
    corners = [tuple(map(float, pair.split())) for pair in line.band[1:-1].split("L")]
    assert len(corners) == 200
    for (x, y), step, value in (
        (corners[0], 1, 5),
        (corners[99], 100, 102),
        (corners[100], 100, 100),
        (corners[199], 1, 1),
    ):
        assert (x, y) == pytest.approx((chart.x.at(step), chart.y.at(value)), abs=0.06)


def test_a_chart_of_many_has_a_line_for_each_and_nothing_faint():
    keys = ("psnr", "test_psnr", "train_psnr")
    variants = [[Log({key: series(lambda step, i=i: i + step % 7, 500) for key in keys}, 500, ())] for i in range(9)]
    found = charts(variants, [str(index) for index in range(9)], crowded=True)
    assert [(chart.key, len(chart.lines)) for chart in found] == [("psnr", 9), ("test_psnr", 9), ("train_psnr", 9)]
    assert not any(line.raw or line.band or line.dashed for chart in found for line in chart.lines)
    assert found[0].note == "Line: mean of 25 neighbouring points."


def test_primitives_that_never_change_are_no_curve():
    constant = Log({"primitives": series(lambda step: 7, 50)}, 50, ())
    growing = Log({"primitives": series(float, 50)}, 50, ())
    assert charts([[constant]], ["a"]) == []
    assert [chart.key for chart in charts([[constant], [growing]], ["a", "b"])] == ["primitives"]


def test_an_axis_is_linear_between_its_ends():
    axis = Axis(0, 10, 50, 250)
    assert [axis.at(value) for value in (0, 5, 10)] == [50, 150, 250]
