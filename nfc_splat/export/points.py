"""`python -m nfc_splat.export points RUN`: what a run's cameras see, as coloured points, in the frame of its scene.

For every method: depth and colour are drawn from the cameras, and pixels with a surface become points.
"""

import argparse
import math
from collections.abc import Sequence

from nfc_splat.chosen_run import add_run_arguments, at_time, load_chosen_run
from nfc_splat.errors import UserError
from nfc_splat.export.destination import add_destination_arguments, output_file
from nfc_splat.terminal import progress

DEFAULT = "exported/points.ply"
FORMATS = (".ply",)
MOST_POINTS = 2**28


def main(arguments: Sequence[str]) -> int:
    """Draw the views and write the points as the command line says; returns the exit code."""
    options = _parser().parse_args(arguments)
    if not 1 <= options.count <= MOST_POINTS:
        raise UserError(f"--count {options.count}: expected 1 to {MOST_POINTS}")
    if options.max_depth is not None and not (options.max_depth > 0 and math.isfinite(options.max_depth)):
        raise UserError(f"--max-depth {options.max_depth:g}: expected a positive length")
    path = output_file(options, DEFAULT, FORMATS)

    from nfc_splat.cameras import Cameras
    from nfc_splat.export.fusion import FAR, draw_views
    from nfc_splat.fields import find_method
    from nfc_splat.fields.point_cloud_file import write_point_cloud

    run, _ = load_chosen_run(options)
    splits = run.scene.splits
    chosen = ["train"] if options.views == "train" else [name for name in splits if len(splits[name])]
    cameras = Cameras.concatenate([splits[name].cameras for name in chosen])
    if options.time is None and find_method(run.config.method).dynamic:
        options.time = 0.0
    if options.time is not None:
        cameras = at_time(run, cameras, options.time)
    with progress(len(cameras), "views") as advance:
        views = draw_views(run.model, cameras, advance)
    median = views.median_depth()
    farthest = options.max_depth or FAR * median
    views = views.nearer_than(farthest)
    points, colors = views.colored_points(options.count)
    if not len(points):
        raise UserError(f"--max-depth {farthest:g}: everything is farther, half of it than {median:.4g}; raise it")
    write_point_cloud(path, points, colors)
    moment = "" if options.time is None else f" at time {options.time:g}"
    print(f"{run.scene.name}, {run.config.method}: step {run.step}")
    print(f"  {len(points):,} points of {len(views)} views{moment}, depth up to {farthest:.4g} (median {median:.4g})")
    for notice in views.notices():
        print(f"  {notice}")
    print(f"  wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nfc_splat.export points",
        description="Write what a run's cameras see as coloured points, in the frame and units of its scene.",
    )
    add_run_arguments(parser)
    add_destination_arguments(parser, f"a file with the ending .ply (default: RUN/{DEFAULT})")
    parser.add_argument(
        "--count", type=int, default=1_000_000, metavar="N", help="at most so many points (default: 1000000)"
    )
    parser.add_argument("--views", choices=("train", "all"), default="train", help="cameras to look from")
    parser.add_argument(
        "--time", type=float, metavar="T", help="of a scene that moves, the moment to show, 0 to 1 (default: 0)"
    )
    parser.add_argument("--max-depth", type=float, metavar="LENGTH", help="ignore what is farther (default: 4 medians)")
    return parser
