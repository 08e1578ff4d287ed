"""Cores and memory given to a process, read from made-up control groups."""

import json
import os

import pytest

from nfc_splat import machine


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_is_the_tightest_of_the_group_and_its_parents(tmp_path):
    _write(tmp_path / "self", "0::/pod/container\n")
    _write(tmp_path / "cg/pod/container/cpu.max", "max 100000\n")
    _write(tmp_path / "cg/pod/cpu.max", "150000 100000\n")
    _write(tmp_path / "cg/cpu.max", "800000 100000\n")
    assert machine.cpu_quota(tmp_path / "cg", tmp_path / "self") == 1.5


def test_quota_of_version_one_groups(tmp_path):
    _write(tmp_path / "self", "3:cpu,cpuacct:/job\n2:memory:/other\n")
    _write(tmp_path / "cg/cpu/job/cpu.cfs_quota_us", "-1\n")
    _write(tmp_path / "cg/cpu/job/cpu.cfs_period_us", "100000\n")
    assert machine.cpu_quota(tmp_path / "cg", tmp_path / "self") is None
    _write(tmp_path / "cg/cpu/job/cpu.cfs_quota_us", "200000\n")
    assert machine.cpu_quota(tmp_path / "cg", tmp_path / "self") == 2.0


@pytest.mark.parametrize(("quota", "given"), [("50000 100000", 1), ("100 0", None), ("max 100000", None)])
def test_cores_given_are_at_least_one_and_never_more_than_the_affinity(tmp_path, quota, given):
    _write(tmp_path / "self", "0::/\n")
    _write(tmp_path / "cg/cpu.max", quota)
    found = machine.cores(tmp_path / "cg", tmp_path / "self")
    assert found.given == (given or min(found.machine, found.affinity))
    assert 1 <= found.given <= found.affinity <= os.cpu_count()


def test_memory_limit_prefers_the_control_group(tmp_path):
    _write(tmp_path / "meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n")
    _write(tmp_path / "self", "0::/a\n")
    assert machine.memory_limit(tmp_path / "cg", tmp_path / "self", tmp_path / "meminfo") == 1_024_000
    _write(tmp_path / "cg/a/memory.max", "512000\n")
    assert machine.memory_limit(tmp_path / "cg", tmp_path / "self", tmp_path / "meminfo") == 512_000
    assert machine.memory_available(tmp_path / "meminfo") == 409_600


def test_nothing_is_known_where_the_system_says_nothing(tmp_path):
    absent = tmp_path / "absent"
    assert machine.cpu_quota(absent, absent) is None
    assert machine.memory_limit(absent, absent, absent) is None
    assert machine.memory_available(absent) is None


def test_versions_and_hardware_go_into_json():
    recorded = json.loads(json.dumps({"versions": machine.versions(), "hardware": machine.hardware()}))
    assert recorded["versions"]["torch"]
    assert recorded["versions"]["nfc-splat"]
    assert recorded["hardware"]["cores"] == machine.cores().given
