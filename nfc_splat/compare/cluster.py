"""Handing the runs of a comparison to Ray: to the cluster that RAY_ADDRESS names, else to this machine's processors.

Scene and output folders must be the same on every machine, as on a shared disk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nfc_splat.compare.plan import Case
from nfc_splat.compare.work import RECORDS, CaseFailed, duration, prepare, run_case
from nfc_splat.errors import UserError

SIGINT, SIGTERM = 2, 15


def do_on_cluster(cases: Sequence[Case], out: Path, threads: int) -> tuple[dict[str, str], int]:
    """Like `work.do`, with Ray deciding what runs where and when; each run takes `threads` processors, and one GPU
    where the cluster has any.

    Raises:
        UserError: Ray is not installed, or `out` holds a run of the same name that was asked for in other words.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--cluster needs Ray; install it on every machine: pip install ray") from None
    waiting = prepare(cases, out)
    ray.init(log_to_driver=False, logging_level="error")
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_run)
    tasks = {
        remote.remote(case, out / RECORDS / f"{case.name}.log", threads, str(Path.cwd())): case for case in waiting
    }
    failures: dict[str, str] = {}
    try:
        while tasks:
            (finished, *_), _ = ray.wait(list(tasks), num_returns=1)
            _close(tasks.pop(finished), ray.get(finished), failures, len(tasks))
    except KeyboardInterrupt:
        for task in tasks:
            ray.cancel(task)
        print("stopped; the same command continues", flush=True)
        return failures, 128 + SIGINT
    finally:
        ray.shutdown()
    return failures, 0


def _run(case: Case, log: Path, threads: int, folder: str) -> tuple[str | None, float, str]:
    """On a machine of the cluster: why the case failed or None, the seconds it took, and where."""
    import os
    import platform
    import time

    os.chdir(folder)
    started = time.monotonic()
    process: Any = None
    failure = None
    try:
        for process in run_case(case, log, threads):
            process.wait()
    except CaseFailed as error:
        failure = str(error)
    except KeyboardInterrupt:
        process.send_signal(SIGTERM)  # it saves
        process.wait()
        raise
    return failure, time.monotonic() - started, platform.node()


def _close(case: Case, outcome: tuple[str | None, float, str], failures: dict[str, str], left: int) -> None:
    failure, seconds, node = outcome
    if failure:
        failures[case.name] = failure
    print(f"{case.name}: {'failed after ' if failure else ''}{duration(seconds)} on {node}; {left} more", flush=True)
