"""Doing what a plan says: several cases at a time, failures, signals, a cluster. The commands are small modules that
stand in for trainings."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nfc_splat.compare import estimate, work
from nfc_splat.compare.plan import Case, Command, MeasuredScene
from nfc_splat.compare.records import read_record, record_path, write_record
from nfc_splat.errors import UserError
from nfc_splat.files import write_json
from nfc_splat.training.signals import Signals

MODULES = {
    # Leaves PRODUCT once OTHER is there: two of them end only if they run at the same time.
    "meet": """
import pathlib, sys, time
begun, other, product = map(pathlib.Path, sys.argv[1:4])
begun.touch()
while not other.exists():
    time.sleep(0.01)
product.write_text(' '.join(sys.argv[4:]))
""",
    "leave": "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('x')",
    # Kills the process that started it.
    "abandon": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "fail": "import sys; print('error: out of luck'); sys.exit(2)",
    # Ends when told to, as a training that saves; a second signal would kill it.
    "linger": """
import pathlib, signal, sys, time
told = []
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: told.append(1))
pathlib.Path(sys.argv[1]).touch()
while not told:
    time.sleep(0.01)
time.sleep(0.5)
pathlib.Path(sys.argv[2]).write_text('saved')
sys.exit(143)
""",
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    places = (folder, Path(__file__).resolve().parent.parent, os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))


def case_of(folder, name, *commands, method="dvgo"):
    done = tuple(Command(words, product) for words, product in commands)
    return Case(name, "a", method, "regression", 0, folder / name, done, MeasuredScene(folder / "a"))


def leaving(folder, name, **options):
    return case_of(folder, name, (("leave", str(folder / name)), folder / name), **options)


def test_jobs_run_at_the_same_time(tmp_path):
    begun = [tmp_path / "begun-a", tmp_path / "begun-b"]
    cases = []
    for name, mine, other in (("a", *begun), ("b", *reversed(begun))):
        product = tmp_path / name
        cases.append(case_of(tmp_path, name, (("meet", str(mine), str(other), str(product)), product)))
    assert work.do(cases, jobs=2) == ({}, 0)
    assert all(case.done for case in cases)


def test_trainings_that_say_nothing_of_threads_share_the_processors(tmp_path):
    product = tmp_path / "p"
    (tmp_path / "cases").mkdir()
    started = []

    class Process:
        returncode = 0

        def __init__(self, words, **_):
            started.append(words[2:])
            product.write_text("")

    for words, told in (
        (("nfc_splat.train", "scene"), ("--threads", "1")),
        (("nfc_splat.train", "scene", "--threads", "2"), ()),
        (("nfc_splat.train", "scene", "--threads=2"), ()),
        (("nfc_splat.export", "mesh"), ()),
    ):
        product.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(work.subprocess, "Popen", Process)
            list(work.run_case(case_of(tmp_path, "a", (words, product)), 1))
        assert tuple(started[-1]) == (*words, *told)


def test_a_failure_is_told_and_the_others_go_on(tmp_path, capsys):
    chain = (("leave", str(tmp_path / "first")), tmp_path / "first"), (("fail",), tmp_path / "second")
    cases = [case_of(tmp_path, "bad", *chain), leaving(tmp_path, "good")]
    failures, code = work.do(cases)
    assert code == 0
    assert failures == {"bad": f"failed (2): out of luck (see {tmp_path}/cases/bad.log)"}
    assert (tmp_path / "first").exists()
    assert cases[1].done
    out = capsys.readouterr().out
    assert "bad: failed after" in out
    assert "1 more" in out


def test_a_command_that_leaves_nothing_has_failed(tmp_path):
    case = case_of(tmp_path, "a", (("leave", str(tmp_path / "elsewhere")), tmp_path / "expected"))
    failures, _ = work.do([case])
    assert "failed (0)" in failures["a"]


@pytest.fixture
def hung_up():
    """SIGHUP acts, though nohup may have started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hung_up")
@pytest.mark.parametrize(("number", "left"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_reaches_every_process_once_and_nothing_is_begun_after_it(tmp_path, capsys, number, left):
    cases = []
    for name in "ab":
        words = ("linger", str(tmp_path / f"begun-{name}"), str(tmp_path / name))
        cases.append(
            case_of(tmp_path, name, (words, tmp_path / name), (("leave", str(tmp_path / "later")), tmp_path / "later"))
        )
    cases.append(leaving(tmp_path, "c"))

    def stop():
        while not all((tmp_path / f"begun-{name}").exists() for name in "ab"):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    failures, code = work.do(cases, jobs=2)
    assert (failures, code) == ({}, left)
    assert [(tmp_path / name).read_text() for name in "ab"] == ["saved", "saved"]
    assert not (tmp_path / "later").exists()
    assert not cases[2].done
    assert "the same command continues" in capsys.readouterr().out


DRIVER = """
import pathlib, sys
from nfc_splat.compare.plan import Case, Command, MeasuredScene
from nfc_splat.compare.work import do
begun, product = map(pathlib.Path, sys.argv[1:])
command = Command(("linger", str(begun), str(product)), product)
do([Case("a", "a", "dvgo", "regression", 0, begun.parent / "a", (command,), MeasuredScene(begun))])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_killed_comparison_does_not_leave_its_training_running(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "begun"), str(tmp_path / "product")])
    wait_for(tmp_path / "begun", process)
    process.kill()
    process.wait()
    wait_for(tmp_path / "product")
    assert (tmp_path / "product").read_text() == "saved"


def wait_for(path, process=None):
    deadline = time.monotonic() + 100
    while not path.exists() or not (path.name == "begun" or path.read_text()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.01)


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.stop is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hung_up")
def test_a_terminal_that_closes_says_so_twice_and_what_is_printed_then_does_no_harm(tmp_path):
    """A process with a terminal of its own, whose other end is closed."""
    main, own = os.openpty()
    program = """
import fcntl, os, pathlib, sys, termios, time
from nfc_splat.training.signals import Signals
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
with Signals() as signals:
    pathlib.Path(sys.argv[1]).touch()
    while signals.stop is None:
        time.sleep(0.01)
    os.kill(os.getpid(), signals.stop)
    print("stopped", flush=True)
pathlib.Path(sys.argv[2]).write_text(str(int(signals.stop)))
"""
    words = [sys.executable, "-c", program, str(tmp_path / "begun"), str(tmp_path / "product")]
    process = subprocess.Popen(words, stdin=own, stdout=own, stderr=own, start_new_session=True)
    os.close(own)
    wait_for(tmp_path / "begun", process)
    os.close(main)
    assert process.wait(timeout=100) == 0
    assert (tmp_path / "product").read_text() == "1"


@pytest.mark.parametrize("jobs", ["4", None, 2.5, True, [1]])
def test_a_record_whose_jobs_are_no_number_is_written_anew(tmp_path, jobs):
    case = leaving(tmp_path, "a")
    write_json(record_path(case), {"jobs": jobs, "surface": None})
    assert read_record(case) == {}
    write_record(case, 2)
    assert read_record(case)["jobs"] == 2


def test_the_time_left_is_that_of_the_same_method(tmp_path):
    fast, slow, new = (leaving(tmp_path, name, method=name) for name in ("fast", "slow", "new"))
    pace = work.Pace(jobs=2)
    assert pace.left([fast]) is None
    pace.add(fast, 10)
    pace.add(fast, 20)
    pace.add(slow, 100)
    assert pace.left([fast, slow]) == (15 + 100) / 2
    assert pace.left([new]) == pytest.approx((130 / 3) / 2)


def training(folder, name, *flags):
    words = ("nfc_splat.train", "a", "--out", str(folder / name), "--method", "dvgo", *flags, "--seed", name[-1])
    return case_of(folder, name, (words, folder / name / "eval/summary.json"))


def test_the_estimate_takes_what_is_finished_and_tries_what_is_not(tmp_path, monkeypatch):
    done, left = (training(tmp_path, name) for name in ("done-1", "left-2"))
    others = [training(tmp_path, f"other-{k}", "--loss=classification", "--loss-weight", str(k)) for k in (1, 2)]
    write_json(tmp_path / "done-1/eval/summary.json", {"train_seconds": 120.0})
    tried = []
    monkeypatch.setattr(estimate, "_tried", lambda case, *_: tried.append((case.name, *_)) or 60.0)
    lines = estimate.describe_time([done, left, *others], tmp_path, 1, None)
    assert lines[0] == "a, dvgo, regression: 1 run left, about 2m00s each"
    assert lines[1] == "a, dvgo, regression: 2 runs left, about 1m00s each"
    assert lines[2] == "in all about 4m00s, 1 at a time"
    assert tried == [("other-1", tmp_path, None)]  # the weight changes nothing

    def refuse(*_):
        raise UserError("no such scene")

    monkeypatch.setattr(estimate, "_tried", refuse)
    lines = estimate.describe_time([done, left, *others], tmp_path, 1, None)
    assert lines[1:] == ["a, dvgo, regression: 2 runs left; how long it takes is unknown: no such scene",
                         "in all about 2m00s and what is unknown, 1 at a time"]  # fmt: skip


@pytest.mark.parametrize(("jobs", "text"), [(1, "6m00s"), (2, "4m00s"), (4, "2m00s")])
def test_a_run_takes_its_time_however_many_are_done_at_once(tmp_path, monkeypatch, jobs, text):
    monkeypatch.setattr(estimate, "_tried", lambda *_: 120.0)
    lines = estimate.describe_time([training(tmp_path, f"a-{k}") for k in range(3)], tmp_path, jobs, 1)
    assert lines[-1] == f"in all about {text}, {jobs} at a time"


@pytest.mark.slow
def test_a_short_training_tells_the_time_once(tmp_path, monkeypatch):
    import training_toy

    from nfc_splat.fields import METHODS

    monkeypatch.setitem(METHODS, "toy", training_toy.METHOD)
    scene = training_toy.write_scene(tmp_path / "scene")
    toy = Path(training_toy.__file__)
    monkeypatch.setenv("PYTHONPATH", f"{toy.parent}{os.pathsep}{toy.parent.parent}")
    words = ("training_toy", str(scene), "--out", str(tmp_path / "run"), "--resume", "auto", "--method", "toy")
    words += ("--preset", "quick", "--steps=2000", "--pause", "0.001")
    case = case_of(tmp_path, "a", (words, tmp_path / "run/eval/summary.json"), method="toy")
    seconds = estimate._tried(case, tmp_path, 1)
    assert 2 < seconds < 200  # a pause of 1 ms in each of 2000 steps
    assert json.loads((tmp_path / "trials/a.json").read_text())["steps"] == 50
    assert not (tmp_path / "trials/a").exists()
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(estimate.subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    assert estimate._tried(case, tmp_path, 1) == seconds
    (tmp_path / "trials/a.json").write_text("")
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        estimate._tried(case, tmp_path, 1)


@pytest.mark.parametrize(("kernels", "expected"), [([3, 3], 900 - 9 + 9 * 40), ([0, 3], 30 - 9 + 9 * 40)])
def test_time_to_compile_is_not_taken_for_time_to_train(tmp_path, monkeypatch, kernels, expected):
    """What had to be compiled first is timed again: it would count forty times."""
    case = case_of(tmp_path, "a", (("nfc_splat.train", "scene", "--method", "dvgo"), tmp_path / "run"), method="dvgo")
    write_json(tmp_path / "trials/a/eval/summary.json", {"train_seconds": 9.0})
    taken = iter([900.0, 30.0])
    monkeypatch.setattr(estimate, "asked_config", lambda _: SimpleNamespace(steps=4000))
    monkeypatch.setattr(estimate, "_timed", lambda _: next(taken))
    monkeypatch.setattr(estimate, "_last_compiled", lambda: kernels.pop(0))
    assert estimate._tried(case, tmp_path, 1) == expected


def test_a_trial_that_fails_leaves_nothing(tmp_path, monkeypatch):
    case = case_of(tmp_path, "a", (("nfc_splat.train", "scene", "--method", "dvgo"), tmp_path / "run"), method="dvgo")
    write_json(tmp_path / "trials/a/config.json", {})
    monkeypatch.setattr(estimate, "asked_config", lambda _: SimpleNamespace(steps=4000))
    command = [sys.executable, "-c", "import sys; sys.exit('error: too few')"]
    timed = estimate._timed
    monkeypatch.setattr(estimate, "_timed", lambda _: timed(command))
    with pytest.raises(UserError, match="too few"):
        estimate._tried(case, tmp_path, 1)
    assert list((tmp_path / "trials").iterdir()) == []


def test_compiling_a_kernel_is_noticed(tmp_path, monkeypatch):
    from nfc_splat.rendering.kernels import numba_tools

    monkeypatch.setattr(numba_tools.numba.config, "CACHE_DIR", str(tmp_path))
    numba_tools.cache_folder.cache_clear()
    try:
        assert estimate._last_compiled() == 0
        kept = numba_tools.cache_folder("tiles_cpu") / "of_a_file"
        kept.mkdir()
        (kept / "a_kernel.1.nbc").touch()
        (kept / "a_kernel.nbi").touch()
        first = estimate._last_compiled()
        os.utime(kept / "a_kernel.1.nbc", ns=(first + 1, first + 1))
        assert estimate._last_compiled() == first + 1
    finally:
        numba_tools.cache_folder.cache_clear()


def test_a_cluster_without_ray_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    from nfc_splat.compare.cluster import do_on_cluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install ray"):
        do_on_cluster([], 1, 1)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "there:6379",
            r"RAY_ADDRESS=there:6379: Ray cannot be reached \(nobody there\); start it there, or unset",
        ),
        (None, r"Ray does not start on this machine \(nobody there\); leave --cluster out"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_an_error_of_one_line(tmp_path, monkeypatch, address, said):
    from nfc_splat.compare.cluster import do_on_cluster

    def init(**_):
        raise ConnectionError("nobody there\nand more")

    errors = SimpleNamespace(RayError=type("RayError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, exceptions=errors))
    monkeypatch.setenv("RAY_ADDRESS", address or "")
    case = leaving(tmp_path, "a")
    with pytest.raises(UserError, match=said) as refused:
        do_on_cluster([case], 1, 1)
    assert "\n" not in str(refused.value)
    assert not record_path(case).exists()


def test_a_folder_that_a_machine_of_the_cluster_lacks_is_named(tmp_path, monkeypatch):
    from nfc_splat.compare import cluster

    monkeypatch.chdir(tmp_path)
    failure, seconds, node = cluster._run(leaving(tmp_path, "a"), 1, str(tmp_path / "absent"))
    assert failure.startswith(f"{tmp_path / 'absent'}: No such file or directory on {node}; ")
    assert seconds == 0


@pytest.mark.slow
def test_ray_runs_the_cases(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    from nfc_splat.compare.cluster import do_on_cluster

    cases = [leaving(tmp_path, "a"), case_of(tmp_path, "bad", (("fail",), tmp_path / "never"))]
    failures, code = do_on_cluster(cases, jobs=2, threads=1)
    assert code == 0
    assert cases[0].done
    assert failures.keys() == {"bad"}
    assert "out of luck" in failures["bad"]


@pytest.mark.slow
def test_ray_waits_for_the_trainings_that_it_stops_and_loses_no_other_with_a_worker(tmp_path, capsys):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from nfc_splat.compare.cluster import do_on_cluster

    case = case_of(tmp_path, "a", (("linger", str(tmp_path / "begun"), str(tmp_path / "a")), tmp_path / "a"))
    words = ("abandon", str(tmp_path / "b"))
    lost = case_of(tmp_path, "lost", (words, tmp_path / "b"))

    def stop():
        while not ((tmp_path / "begun").exists() and "lost: failed" in (tmp_path / "said").read_text()):
            time.sleep(0.01)
            with open(tmp_path / "said", "a") as said:
                said.write(capsys.readouterr().out)
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "said").touch()
    threading.Thread(target=stop, daemon=True).start()
    failures, code = do_on_cluster([lost, case], jobs=1, threads=1)
    assert code == 143
    assert failures.keys() == {"lost"}
    assert "lost by the cluster" in failures["lost"]
    assert (tmp_path / "a").read_text() == "saved"
    assert not ray.is_initialized()
