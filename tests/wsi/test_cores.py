"""How many cores: the least of the limits that are set."""

from __future__ import annotations

import os

import pytest

from wsi.cores import available_cores


@pytest.fixture(autouse=True)
def eight(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("junk", 8), ("1600000 100000", 8)],
)
def test_cgroup_v2(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    assert available_cores(cgroup=tmp_path) == cores


@pytest.mark.parametrize(
    ("path", "quotas", "cores"),
    [
        ("/user.slice/run.scope", {"user.slice/run.scope": "200000"}, 2),
        ("/user.slice/run.scope", {"user.slice": "300000", "user.slice/run.scope": "max"}, 3),
        ("/../other", {"other": "100000"}, 8),
    ],
)
def test_the_least_quota_of_the_groups_that_a_process_is_in(tmp_path, path, quotas, cores):
    mine = tmp_path / "mine"
    mine.write_text(f"0::{path}\n")
    for folder, quota in quotas.items():
        (tmp_path / "fs" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / folder / "cpu.max").write_text(f"{quota} 100000")
    assert available_cores(cgroup=tmp_path / "fs", mine=mine) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3)])
def test_cgroup_v1(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_cores(cgroup=tmp_path) == cores


@pytest.mark.parametrize(("value", "cores"), [("3", 3), ("99", 8), ("", 8), ("many", 8), ("0", 8)])
def test_slurm(tmp_path, monkeypatch, value, cores):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", value)
    assert available_cores(cgroup=tmp_path) == cores
