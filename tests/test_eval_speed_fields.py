"""`eval speed --kernels`: both sides compute the same, in turn, and the figures are printed and recorded."""

import json
from dataclasses import replace

import pytest
import torch

from nfc_splat.errors import UserError
from nfc_splat.eval import speed, speed_fields
from nfc_splat.eval.speed_fields import PAIRS, Sizes, time_pair

TINY = Sizes(points=200, grid=12, log2_table_size=8, rays=40, samples=5, cells=9)


@pytest.mark.parametrize("make", PAIRS, ids=lambda make: make.__name__)
def test_ours_and_plain_torch_compute_the_same(make):
    torch.manual_seed(0)
    pair = make(TINY, "cpu")
    ours, plain = pair.ours(*pair.leaves), pair.plain(*pair.plain_leaves)
    assert ours.numel() > 20
    assert ours.std() > 0
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3 * float(plain.detach().abs().max()))
    if pair.leaves:
        upstream = torch.randn_like(ours)
        norms = [
            [gradient.norm() for gradient in torch.autograd.grad(values, leaves, upstream)]
            for values, leaves in ((ours, pair.leaves), (plain, pair.plain_leaves))
        ]
        torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-6)


def test_the_two_take_turns_and_warming_up_does_not_count():
    calls = []

    def side(name):
        return lambda x: calls.append(name) or x * 2

    leaf = torch.ones(3, requires_grad=True)
    pair = speed_fields.Pair("twice", side("ours"), side("plain"), [leaf], [leaf])
    row = time_pair(pair, 3, "cpu")
    rounds = [set(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert rounds == [{"ours", "plain"}] * (1 + speed_fields.WARM_UP + 3)
    assert len(set(calls[2::2])) == 2
    assert min(row.ours_ms, row.plain_ms, row.ratio) > 0


def test_kernels_that_disagree_are_not_timed():
    pair = PAIRS[0](TINY, "cpu")
    spoilt = replace(pair, ours=lambda table: pair.ours(table) + 1)
    with pytest.raises(RuntimeError, match=r"hash encoding.*do not agree"):
        time_pair(spoilt, 1, "cpu")


def test_the_command_prints_a_table_and_writes_a_record(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(speed_fields, "SIZES", TINY)
    record = tmp_path / "kernels.json"
    assert speed.main(["--kernels", "--steps", "2", "--threads", "1", "--record", str(record)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(record.read_text())
    assert len(written["rows"]) == len(PAIRS)
    assert (written["repeats"], written["threads"], written["device"]) == (2, 1, "cpu")
    assert written["sizes"]["grid"] == 12
    assert {"hardware", "versions"} <= written.keys()
    for row in written["rows"]:
        assert f"{row['kernel']} " in printed
        assert min(row["ours_ms"], row["plain_ms"], row["ratio"]) > 0


def test_a_record_needs_kernels(tmp_path):
    with pytest.raises(UserError, match="it belongs to --fields and --kernels and --mesh"):
        speed.main(["--record", str(tmp_path / "a.json")])
