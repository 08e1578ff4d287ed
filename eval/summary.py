"""What a command prints of a summary of views."""

from collections.abc import Mapping, Sequence
from typing import Any

from nfc_splat.terminal import print_table


def print_summary(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> None:
    """Print means and extremes, and whether they are what was recorded before."""
    protocol = summary["protocol"]
    step = f"step {summary['step']}, " if "step" in summary else ""
    print(f"{summary['title']}: {step}{summary['n_views']} {protocol['split']} views", end="")
    print(f", protocol {protocol['name']} ({protocol['bit_depth']}, SSIM {protocol['ssim']['padding']})")
    table = [["metric", "mean", "worst view", "", "best view", ""]]
    metrics = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 4)}
    metrics |= {f"lpips_{net}": (f"LPIPS {net}", 4) for net in protocol["lpips"]["nets"]}
    for key, (label, digits) in metrics.items():
        values = sorted((row[key], row["name"]) for row in rows if row.get(key) is not None)
        if values:
            worst, best = (values[-1], values[0]) if key.startswith("lpips") else (values[0], values[-1])
            table.append([label, f"{summary[key]:.{digits}f}", *_cell(worst, digits), *_cell(best, digits)])
    print_table(table, numbers=(1, 2, 4))
    for note in summary["notes"]:
        print(f"  note: {note}")
    known = summary["psnr"] is not None and before.get("psnr") is not None
    if known and before.get("step") == summary["step"]:
        change = summary["psnr"] - before["psnr"]
        print(f"  recorded before: PSNR {before['psnr']:.2f} dB, {'equal' if change == 0 else f'{change:+.2g} dB now'}")


def _cell(value: tuple[float, str], digits: int) -> tuple[str, str]:
    return f"{value[0]:.{digits}f}", value[1]
