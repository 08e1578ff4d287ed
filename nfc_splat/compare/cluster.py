"""Handing the runs of a comparison to Ray: to the cluster that RAY_ADDRESS names, else to this machine's processors.

Scene and output folders must be the same on every machine, as on a shared disk.
"""

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nfc_splat.compare.plan import Case
from nfc_splat.compare.work import PATIENCE, CaseFailed, prepare, run_case
from nfc_splat.errors import UserError
from nfc_splat.terminal import duration
from nfc_splat.training.signals import Signals


def do_on_cluster(runs: Sequence[Case], jobs: int, threads: int) -> tuple[dict[str, str], int]:
    """Like `work.do`, with Ray deciding what runs where and when; each run takes `threads` processors, and one GPU
    where the cluster has any.

    Raises:
        UserError: Ray is not installed, or cannot be reached or started.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--cluster needs Ray; install it on every machine: pip install ray") from None
    _connect(ray)
    failures: dict[str, str] = {}
    try:
        waiting = prepare(runs, jobs)
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_run)
        tasks = {remote.remote(case, threads, str(Path.cwd())): case for case in waiting}
        with Signals() as signals:  # in place of the handlers that Ray has just set
            told = False
            while tasks:
                if signals.stop is not None and not told:
                    told = True
                    for task in tasks:
                        ray.cancel(task)
                finished, _ = ray.wait(list(tasks), num_returns=1, timeout=PATIENCE)
                for task in finished:
                    _close(tasks.pop(task), _outcome(task), failures, len(tasks), told)
    finally:
        ray.shutdown()
    if signals.stop is not None:
        print("stopped; the same command continues", flush=True)
        return failures, 128 + signals.stop
    return failures, 0


def _connect(ray: Any) -> None:
    """Join the cluster, or start one on this machine; a `UserError` where that fails."""
    try:
        ray.init(log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        address = os.environ.get("RAY_ADDRESS")
        if address:
            what, remedy = f"RAY_ADDRESS={address}: Ray cannot be reached", "start it there, or unset RAY_ADDRESS"
        else:
            what, remedy = "Ray does not start on this machine", "leave --cluster out"
        raise UserError(f"{what} ({_first_line(error)}); {remedy}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _run(case: Case, threads: int, folder: str) -> tuple[str | None, float, str]:
    """On a machine of the cluster: why the case failed or None, the seconds it took, and where."""
    node = platform.node()
    try:
        os.chdir(folder)
    except OSError as error:
        return f"{folder}: {error.strerror} on {node}; folders must be the same on every machine", 0.0, node
    started = time.monotonic()
    process: Any = None
    failure = None
    try:
        for process in run_case(case, threads):
            _wait(process)
    except CaseFailed as error:
        failure = str(error)
    except KeyboardInterrupt:  # that is how Ray cancels
        if process is not None:
            process.terminate()  # it saves
            process.wait()
        raise
    return failure, time.monotonic() - started, node


def _wait(process: "subprocess.Popen[bytes]") -> None:
    """Until it ends. Ray's interrupt is seen between two looks only: it does not wake a process that waits for good."""
    while True:
        try:
            process.wait(PATIENCE)
            return
        except subprocess.TimeoutExpired:
            continue


def _outcome(task: Any) -> tuple[str | None, float, str]:
    """What a task found, which fails by itself where its machine is lost."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return f"lost by the cluster: {_first_line(error)}", 0.0, "the cluster"


def _close(
    case: Case, outcome: tuple[str | None, float, str], failures: dict[str, str], left: int, stopping: bool
) -> None:
    """Say how a run ended, unless it was told to."""
    failure, seconds, node = outcome
    if stopping:
        return
    if failure:
        failures[case.run] = failure
    print(f"{case.run}: {'failed after ' if failure else ''}{duration(seconds)} on {node}; {left} more", flush=True)
