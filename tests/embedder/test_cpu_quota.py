"""The CPU quota of a container is found where its control groups have it, whatever their version and nesting."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedder.cpu_quota import cpu_quota

GROUPS_2 = "0::/pod/worker\n"
GROUPS_1 = "9:name=systemd:/\n4:memory:/pod\n2:cpu,cpuacct:/pod/worker\n0::/\n"


def quota_of(folder: Path, groups: str, files: dict[str, str]) -> float | None:
    """The quota of a process in these groups, under a mount with these files."""
    mount = folder / "mount"
    for name, content in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / "groups").write_text(groups)
    return cpu_quota(folder / "groups", mount)


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        pytest.param(GROUPS_2, {"pod/worker/cpu.max": "150000 100000\n"}, 1.5, id="version 2"),
        pytest.param(GROUPS_2, {"cpu.max": "50000 100000"}, 0.5, id="version 2, the root is the container's group"),
        pytest.param(
            GROUPS_2,
            {"pod/cpu.max": "200000 100000", "pod/worker/cpu.max": "max 100000"},
            2.0,
            id="version 2, the quota is that of the pod",
        ),
        pytest.param(
            GROUPS_1,
            {"cpu,cpuacct/pod/worker/cpu.cfs_quota_us": "300000", "cpu,cpuacct/pod/worker/cpu.cfs_period_us": "100000"},
            3.0,
            id="version 1",
        ),
        pytest.param(
            "3:cpu,cpuacct:/docker/1234\n",
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"},
            2.0,
            id="version 1, the root is the container's group",
        ),
        pytest.param("0::/../other\n", {"cpu.max": "100000 100000"}, 1.0, id="a group outside of the container's view"),
        pytest.param(GROUPS_2, {"pod/worker/cpu.max": "max 100000"}, None, id="version 2 without a quota"),
        pytest.param(
            GROUPS_1,
            {"cpu,cpuacct/pod/worker/cpu.cfs_quota_us": "-1", "cpu,cpuacct/pod/worker/cpu.cfs_period_us": "100000"},
            None,
            id="version 1 without a quota",
        ),
        pytest.param("", {}, None, id="no control groups"),
        pytest.param("nonsense\n", {"cpu.max": "many 0"}, None, id="files of another form"),
    ],
)
def test_the_least_quota_of_the_groups_is_found(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    """A worker knows how many processors it may use, in containers of either version of control groups."""
    assert quota_of(tmp_path, groups, files) == quota


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    """Where the files are missing, as on macOS, there is no quota and no error."""
    assert cpu_quota(tmp_path / "missing", tmp_path / "missing") is None
