"""Evaluating a split: the numbers, the files, and what happens at the edges."""

import json

import numpy as np
import pytest
import torch
from eval_toys import Disc, ToySplit
from PIL import Image

from nfc_splat.errors import UserError
from nfc_splat.eval import views
from nfc_splat.eval.images import PROTOCOLS, psnr, ssim
from nfc_splat.eval.pictures import depth_levels, depth_picture
from nfc_splat.eval.views import evaluate_views, picture_name

WHITE = torch.ones(3)


def evaluate(folder=None, split=None, model=None, protocol="default", extra=None, **options):
    return evaluate_views(
        model or Disc(),
        ToySplit() if split is None else split,
        background=WHITE,
        protocol=PROTOCOLS[protocol],
        device="cpu",
        folder=folder,
        extra=extra or {},
        **options,
    )


def test_the_summary_is_the_mean_of_the_views(tmp_path):
    split = ToySplit(4)
    summary = evaluate(tmp_path, split)
    renders = [Disc().eval().render(split.cameras[i], background=WHITE).color[0].detach() for i in range(4)]
    targets = [split.target(i, WHITE) for i in range(4)]
    expected = [psnr(a, b).item() for a, b in zip(renders, targets, strict=True)][1:]
    assert summary["psnr"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert summary["psnr_infinite_views"] == 1  # the first photograph has no noise
    expected = [ssim(a, b).item() for a, b in zip(renders, targets, strict=True)]
    assert summary["ssim"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert summary["n_views"] == 4
    assert 0 < summary["median_seconds"] <= summary["seconds"]
    assert json.loads((tmp_path / "eval/summary.json").read_text()) == json.loads(json.dumps(summary))


def test_two_evaluations_give_equal_numbers_and_equal_pictures(tmp_path):
    first, second = (evaluate(tmp_path / name) for name in "ab")
    for key in ("psnr", "ssim", "lpips", "n_views"):
        assert first[key] == second[key]
    for file in (tmp_path / "a/renders").iterdir():
        assert file.read_bytes() == (tmp_path / "b/renders" / file.name).read_bytes()


def test_the_files_are_there_and_agree(tmp_path):
    split = ToySplit(3)
    evaluate(tmp_path, split)
    rows = json.loads((tmp_path / "eval/per_view.json").read_text())
    assert [row["name"] for row in rows] == split.names
    assert rows[0]["psnr"] is None
    assert rows[0]["psnr_infinite"] is True
    files = [row["file"] for row in rows]
    for kind in ("renders", "gt"):
        assert sorted(path.name for path in (tmp_path / kind).iterdir()) == sorted(files)
    for index, row in enumerate(rows):
        truth = np.asarray(Image.open(tmp_path / "gt" / row["file"]))
        expected = np.floor(split.target(index, WHITE).double().numpy() * 255 + 0.5)
        np.testing.assert_array_equal(truth, expected)
    # Others' scripts read the pictures: what they find is our protocol "graphdeco".
    summary = evaluate(tmp_path / "g", split, protocol="graphdeco")
    read = lambda kind, row: np.asarray(Image.open(tmp_path / kind / row["file"])) / 255.0  # noqa: E731
    errors = [np.mean((read("renders", row) - read("gt", row)) ** 2) for row in rows[1:]]
    assert summary["psnr"] == pytest.approx(np.mean(-10 * np.log10(errors)), abs=1e-6)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * 240
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("interrupted", ["_write_depth_ranges", "_write_contact_sheet"])
def test_a_summary_says_that_everything_else_is_there(tmp_path, monkeypatch, interrupted):
    """`compare` takes a run with a summary for finished; one that was killed at work must not have it."""

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(views, interrupted, die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, ToySplit(2))
    assert (tmp_path / "renders").is_dir()
    assert not (tmp_path / "eval/summary.json").exists()


def test_depth_is_kept_as_a_picture_whose_colours_have_a_meaning(tmp_path):
    """`Disc` is 2.5 away within its disc, and nothing is beside it."""
    split = ToySplit(3)
    evaluate(tmp_path, split)
    record = json.loads((tmp_path / "depth/depth.json").read_text())
    files = sorted(path.name for path in (tmp_path / "renders").iterdir())
    assert sorted(record["near_far"]) == files
    assert {"levels", "near, far", "depth"} <= set(record["meaning"])
    drawn = Disc().eval().render(split.cameras[1], background=WHITE)
    with Image.open(tmp_path / "depth" / files[1]) as image:
        assert image.mode == "P"
        levels, colors = np.asarray(image), np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(levels > 0, drawn.alpha[0, ..., 0].numpy() >= 0.5)
    near, far = record["near_far"][files[1]]
    assert near == pytest.approx(2.5)
    np.testing.assert_array_equal(colors, depth_picture(levels, (near, far), (near, far)))


def test_levels_say_the_depth_again_to_a_254th_of_its_inverse():
    depth = torch.linspace(2, 9, 1000).repeat(700, 1)
    alpha = (torch.arange(700) >= 100)[:, None].expand(700, 1000).float()
    levels, (near, far) = depth_levels(depth, alpha)
    assert levels.shape == (234, 334)  # every third row and column
    assert (near, far) == pytest.approx((2.14, 8.86), abs=0.02)
    assert (levels[:34] == 0).all()
    inverse = 1 / far + (1 / near - 1 / far) * (levels[34:] - 1.0) / 254
    expected = np.broadcast_to(1 / depth[0, ::3].double().numpy(), inverse.shape).clip(1 / far, 1 / near)
    np.testing.assert_allclose(inverse, expected, atol=0.51 * (1 / near - 1 / far) / 254)
    shown = depth_picture(levels, (near, far), (near, far)).sum(-1).astype(int)
    assert (np.diff(shown[-1]) <= 0).all()  # near is bright
    # In a range of other pictures the same depth gets their colour.
    others, (first, last) = depth_levels(depth + 1, alpha)
    at = lambda picture, z: picture[-1, round((z - 2) / 7 * 333)].astype(int)  # noqa: E731
    here = at(depth_picture(levels, (near, far), (first, last)), 5.0)
    there = at(depth_picture(others, (first, last), (first, last)), 4.0)
    assert np.abs(here - there).max() <= 4


def test_a_view_of_nothing_has_no_range(tmp_path):
    levels, near_far = depth_levels(torch.zeros(3, 4), torch.zeros(3, 4))
    assert near_far is None
    assert not levels.any()


def test_the_protocol_block_says_how_the_numbers_came_about(tmp_path):
    extra = {"step": 70, "title": "toy", "protocol": {"split": "test", "resampler": "area", "seed": 3}}
    summary = evaluate(tmp_path, ToySplit(2, masked=True), protocol="nerfbaselines", extra=extra)
    block = summary["protocol"]
    assert block["name"] == "nerfbaselines"
    assert block["background"] == [1.0, 1.0, 1.0]
    assert block["resolution"] == [40, 30]
    assert (block["split"], block["resampler"], block["seed"]) == ("test", "area", 3)
    assert block["mask"]["views"] == 2
    assert block["versions"]["torch"] == torch.__version__
    assert {"cpu", "cores", "gpus"} <= set(block["hardware"])
    assert summary["step"] == 70


def test_a_protocol_may_leave_out_the_first_views(tmp_path):
    summary = evaluate(tmp_path, ToySplit(4), protocol="dnerf")
    assert summary["n_views"] == 3
    rows = json.loads((tmp_path / "eval/per_view.json").read_text())
    assert [row["name"] for row in rows] == ToySplit(4).names[1:]
    assert [row["file"][:4] for row in rows] == ["0001", "0002", "0003"]
    errors = [10 ** (-row["psnr"] / 10) for row in rows]
    assert summary["psnr"] == pytest.approx(-10 * np.log10(np.mean(errors)), abs=1e-9)
    with pytest.raises(UserError, match="--protocol dnerf leaves out the first 1 of the split's 1 views"):
        evaluate(split=ToySplit(1), protocol="dnerf")


def test_without_networks_lpips_is_null_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    summary = evaluate(tmp_path)
    assert summary["lpips"] is None
    assert summary["lpips_vgg"] is None
    assert "torchvision is not installed" in summary["protocol"]["lpips"]["missing"]["alex"]
    assert summary["notes"][-1].startswith("lpips_alex and lpips_vgg null: torchvision")


def test_the_model_draws_in_eval_mode_and_keeps_its_own(tmp_path):
    model = Disc().train()
    summary = evaluate(model=model, split=ToySplit(3, noise=0.0))
    assert summary["psnr_infinite_views"] == 3
    assert model.training
    assert model.brightness.grad is None


def test_masks_change_the_numbers():
    assert evaluate(split=ToySplit(3, masked=True))["psnr"] != evaluate(split=ToySplit(3))["psnr"]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate()
    assert not list(tmp_path.iterdir())


def test_tables_can_lie_elsewhere(tmp_path):
    evaluate(tmp_path / "pictures", tables=tmp_path / "numbers")
    assert (tmp_path / "numbers/summary.json").is_file()
    assert not (tmp_path / "pictures/eval").exists()


def test_a_rendering_full_of_nan_is_reported_not_crashed_on(tmp_path):
    summary = evaluate(tmp_path, model=Disc(float("nan")))
    assert summary["psnr"] is None
    assert summary["ssim"] is None
    assert "NaN" in summary["notes"][0]
    assert (tmp_path / "contact_sheet.png").is_file()


@pytest.mark.parametrize("count", [1, 2])
def test_few_views_make_a_sheet_too(tmp_path, count):
    evaluate(tmp_path, ToySplit(count))
    assert (tmp_path / "contact_sheet.png").is_file()


def test_an_empty_split_is_the_users_to_mend():
    with pytest.raises(UserError, match="no views"):
        evaluate(split=ToySplit(0))


def test_views_are_reported_as_they_come():
    seen = []
    evaluate(split=ToySplit(3), on_view=lambda name, score: seen.append((name, score.ssim)))
    assert [name for name, _ in seen] == ToySplit(3).names
    assert seen[0][1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("r_0", "0007_r_0"),
        ("test/r_0.png", "0007_test_r_0"),
        ("../../etc/passwd", "0007_.._.._etc_passwd"),
        ("a b\u00e9\0.JPG", "0007_a_b_"),
        ("con" * 80, "0007_" + ("con" * 80)[-80:]),
    ],
)
def test_picture_names_are_safe(name, expected):
    assert picture_name(7, name) == expected


@pytest.mark.gpu
def test_a_gpu_gives_the_numbers_of_a_cpu(tmp_path):
    on_cpu = evaluate(tmp_path / "cpu", ToySplit(4, masked=True))
    on_gpu = evaluate_views(
        Disc().cuda(),
        ToySplit(4, masked=True),
        background=WHITE,
        protocol=PROTOCOLS["default"],
        device="cuda",
        folder=tmp_path / "gpu",
        extra={},
    )
    assert on_gpu["psnr"] == pytest.approx(on_cpu["psnr"], abs=1e-3)
    assert on_gpu["ssim"] == pytest.approx(on_cpu["ssim"], abs=1e-4)
