"""Memory given to a process, read from made-up control groups, and what is recorded with results."""

import json

from nfc_splat import machine


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_limit_prefers_the_control_group(tmp_path):
    _write(tmp_path / "meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n")
    _write(tmp_path / "self", "0::/a\n")
    assert machine.memory_limit(tmp_path / "cg", tmp_path / "self", tmp_path / "meminfo") == 1_024_000
    _write(tmp_path / "cg/a/memory.max", "512000\n")
    assert machine.memory_limit(tmp_path / "cg", tmp_path / "self", tmp_path / "meminfo") == 512_000
    assert machine.memory_available(tmp_path / "meminfo") == 409_600


def test_nothing_is_known_where_the_system_says_nothing(tmp_path):
    absent = tmp_path / "absent"
    assert machine.memory_limit(absent, absent, absent) is None
    assert machine.memory_available(absent) is None


def test_versions_and_hardware_go_into_json():
    recorded = json.loads(json.dumps({"versions": machine.versions(), "hardware": machine.hardware()}))
    assert recorded["versions"]["torch"]
    assert recorded["versions"]["nfc-splat"]
    assert recorded["hardware"]["cores"] >= 1
    assert recorded["hardware"]["cpu"]


def test_memory_limit_of_version_one_groups_counts_the_parents(tmp_path):
    _write(tmp_path / "meminfo", "MemTotal: 1000 kB\n")
    _write(tmp_path / "self", "4:memory:/job/task\n3:cpu:/other\n")
    _write(tmp_path / "cg/memory/job/task/memory.limit_in_bytes", "9223372036854771712\n")
    _write(tmp_path / "cg/memory/job/memory.limit_in_bytes", "300000\n")
    _write(tmp_path / "cg/cpu/other/memory.limit_in_bytes", "1\n")
    assert machine.memory_limit(tmp_path / "cg", tmp_path / "self", tmp_path / "meminfo") == 300_000
