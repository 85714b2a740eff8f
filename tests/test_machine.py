"""Containers as recorded trees of ``/proc`` and ``/sys``: what the machine module makes of each."""

import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_serve.machine import Machine, descriptor_limit, read_machine

MIB = 1 << 20
GIB = 1 << 30
UNLIMITED_V1 = "9223372036854771712"
MEMINFO = "MemTotal:       25165824 kB\nMemFree:  1000 kB\nMemAvailable:   20971520 kB\nHugePages_Total:  0\n"
V2_MOUNT = "31 24 0:28 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n"
V2 = "sys/fs/cgroup"
MEMORY_V1 = "sys/fs/cgroup/memory"
CPU_V1 = "sys/fs/cgroup/cpu,cpuacct"


def v1_mounts(source: str) -> str:
    return (
        f"32 31 0:29 {source} /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        f"35 31 0:32 {source} /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    )


def tree(root: Path, files: dict[str, str], *, meminfo: str = MEMINFO) -> Machine:
    """The machine of 8 processors that these files describe."""
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return read_machine(root, affinity=8)


V2_LIMITED = {
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": V2_MOUNT,
    f"{V2}/cpu.max": "150000 100000\n",
    f"{V2}/cpu.weight": "1\n",
    f"{V2}/memory.max": f"{GIB}\n",
    f"{V2}/memory.current": f"{600 * MIB}\n",
    f"{V2}/memory.stat": (
        f"anon {100 * MIB}\nfile {500 * MIB}\nshmem {200 * MIB}\nfile_mapped {50 * MIB}\n"
        f"inactive_anon {200 * MIB}\ninactive_file {250 * MIB}\nactive_file {50 * MIB}\n"
    ),
}
V2_NESTED = {
    "proc/self/cgroup": "0::/pod7/server\n",
    "proc/self/mountinfo": V2_MOUNT,
    f"{V2}/pod7/memory.max": f"{2 * GIB}\n",
    f"{V2}/pod7/memory.current": f"{GIB}\n",
    f"{V2}/pod7/memory.stat": "inactive_file 0\n",
    f"{V2}/pod7/cpu.max": "50000 100000\n",
    f"{V2}/pod7/server/memory.max": "max\n",
    f"{V2}/pod7/server/memory.current": f"{500 * MIB}\n",
    f"{V2}/pod7/server/cpu.max": "max 100000\n",
}
# docker run --memory 512m --cpus 1: the host's path is named, the files lie at the mount's root.
V1_DOCKER = {
    "proc/self/cgroup": "4:memory:/docker/4f2a\n1:cpu,cpuacct:/docker/4f2a\n0::/docker/4f2a\n",
    "proc/self/mountinfo": v1_mounts("/docker/4f2a"),
    f"{MEMORY_V1}/memory.limit_in_bytes": f"{512 * MIB}\n",
    f"{MEMORY_V1}/memory.usage_in_bytes": f"{300 * MIB}\n",
    f"{MEMORY_V1}/memory.stat": (
        f"inactive_file {1 * MIB}\nactive_file {1 * MIB}\nhierarchical_memory_limit {512 * MIB}\n"
        f"total_shmem {60 * MIB}\ntotal_mapped_file {20 * MIB}\n"
        f"total_inactive_file {90 * MIB}\ntotal_active_file {30 * MIB}\n"
    ),
    f"{CPU_V1}/cpu.cfs_quota_us": "100000\n",
    f"{CPU_V1}/cpu.cfs_period_us": "100000\n",
    f"{CPU_V1}/cpu.shares": "2\n",
}
# Version 1 accounts memory and processors; version 2's tree holds a group of another name.
HYBRID = {
    "proc/self/cgroup": "4:memory:/job/a\n1:cpu,cpuacct:/\n0::/session\n",
    "proc/self/mountinfo": (
        v1_mounts("/") + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    ),
    f"{MEMORY_V1}/memory.limit_in_bytes": UNLIMITED_V1,
    f"{MEMORY_V1}/job/memory.limit_in_bytes": f"{4 * GIB}",
    f"{MEMORY_V1}/job/memory.usage_in_bytes": f"{GIB}",
    f"{MEMORY_V1}/job/a/memory.limit_in_bytes": UNLIMITED_V1,
    f"{MEMORY_V1}/session/memory.limit_in_bytes": f"{MIB}",
    f"{CPU_V1}/cpu.cfs_quota_us": "-1",
    f"{CPU_V1}/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/unified/session/cgroup.procs": "1",
}
UNLIMITED_V2 = {
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": V2_MOUNT,
    f"{V2}/memory.max": "max\n",
    f"{V2}/memory.current": f"{GIB}\n",
    f"{V2}/cpu.max": "max 100000\n",
}
UNLIMITED_V1_TREE = {
    **V1_DOCKER,
    f"{MEMORY_V1}/memory.limit_in_bytes": UNLIMITED_V1,
    f"{MEMORY_V1}/memory.stat": f"hierarchical_memory_limit {UNLIMITED_V1}\n",
    f"{CPU_V1}/cpu.cfs_quota_us": "-1\n",
}
# The limit lies on a group above what the container can see; only version 1's statistics know it.
HIDDEN_PARENT = {
    **UNLIMITED_V1_TREE,
    f"{MEMORY_V1}/memory.stat": f"hierarchical_memory_limit {GIB}\ntotal_inactive_file 0\n",
}
WITHOUT_MOUNTINFO = {name: text for name, text in V2_NESTED.items() if "mountinfo" not in name}
OUTSIDE_NAMESPACE = {**V2_LIMITED, "proc/self/cgroup": "0::/../../other\n"}
GARBAGE = {
    "proc/self/cgroup": "\x00\n::::\n0::relative\nnonsense",
    "proc/self/mountinfo": "- - -\n1 2 3 4 5 6 - cgroup2\n" + V2_MOUNT,
    f"{V2}/cpu.max": "many few\n",
    f"{V2}/memory.max": "-5\n",
    f"{V2}/memory.current": "\u00b2\n",
    f"{V2}/memory.stat": "inactive_file\n\nactive_file x\n",
}
ZERO_PERIOD = {**V2_LIMITED, f"{V2}/cpu.max": "50000 0\n"}
TOTAL = 24 * GIB
AVAILABLE = 20 * GIB


@pytest.mark.parametrize(
    ("files", "cpus", "limit", "available"),
    [
        pytest.param(V2_LIMITED, 2, GIB, (1024 - 600 + 250) * MIB, id="v2 limited"),
        pytest.param(V2_NESTED, 1, 2 * GIB, GIB, id="v2 nested, limit on the parent"),
        pytest.param(V1_DOCKER, 1, 512 * MIB, (512 - 300 + 100) * MIB, id="v1 docker"),
        pytest.param(HYBRID, 8, 4 * GIB, 3 * GIB, id="hybrid"),
        pytest.param(UNLIMITED_V2, 8, TOTAL, AVAILABLE, id="v2 unlimited"),
        pytest.param(UNLIMITED_V1_TREE, 8, TOTAL, AVAILABLE, id="v1 unlimited"),
        pytest.param(HIDDEN_PARENT, 8, GIB, (1024 - 300) * MIB, id="v1 hidden parent"),
        pytest.param(WITHOUT_MOUNTINFO, 1, 2 * GIB, GIB, id="v2 nested, no mountinfo"),
        pytest.param(OUTSIDE_NAMESPACE, 2, GIB, (1024 - 600 + 250) * MIB, id="v2 outside its namespace"),
        pytest.param(GARBAGE, 8, TOTAL, AVAILABLE, id="garbage"),
        pytest.param(ZERO_PERIOD, 8, GIB, (1024 - 600 + 250) * MIB, id="period of zero"),
        pytest.param({}, 8, TOTAL, AVAILABLE, id="absent"),
    ],
)
def test_limits(tmp_path: Path, files: dict[str, str], cpus: int, limit: int, available: int) -> None:
    """Processors from the quota, the least limit, and what is left of it without mapped or shared memory."""
    machine = tree(tmp_path, files)
    assert (machine.cpus, machine.memory_limit_bytes) == (cpus, limit)
    assert machine.memory_available_bytes() == available


def test_v1_without_mountinfo_is_found_at_the_conventional_place(tmp_path: Path) -> None:
    machine = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/4f2a\n1:cpu:/docker/4f2a\n",
            f"{MEMORY_V1}/memory.limit_in_bytes": f"{512 * MIB}",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert (machine.cpus, machine.quota, machine.memory_limit_bytes) == (3, 2.5, 512 * MIB)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("1000", 1), ("50000", 1), ("100000", 1), ("100001", 2), ("150000", 2), ("9900000", 8)],
)
def test_fractions_of_a_processor_round_up_within_the_affinity(tmp_path: Path, quota: str, cpus: int) -> None:
    assert tree(tmp_path, {**V2_LIMITED, f"{V2}/cpu.max": f"{quota} 100000"}).cpus == cpus


def test_available_memory_is_read_anew(tmp_path: Path) -> None:
    machine = tree(tmp_path, V2_LIMITED)
    (tmp_path / V2 / "memory.current").write_text(f"{900 * MIB}")
    assert machine.memory_available_bytes() == (1024 - 900 + 250) * MIB


@pytest.mark.parametrize(
    ("current", "inactive", "available"),
    [
        pytest.param(2 * GIB, 0, 0, id="over the limit"),
        pytest.param(100 * MIB, 500 * MIB, GIB, id="more cache than use"),
    ],
)
def test_available_memory_stays_between_nothing_and_the_limit(
    tmp_path: Path, current: int, inactive: int, available: int
) -> None:
    files = {f"{V2}/memory.current": f"{current}", f"{V2}/memory.stat": f"inactive_file {inactive}\n"}
    assert tree(tmp_path, {**V2_LIMITED, **files}).memory_available_bytes() == available


def test_available_memory_of_the_machine_bounds_that_of_the_container(tmp_path: Path) -> None:
    meminfo = "MemTotal: 25165824 kB\nMemAvailable: 1024 kB\n"
    assert tree(tmp_path, V2_LIMITED, meminfo=meminfo).memory_available_bytes() == MIB


def test_limit_above_physical_memory_limits_nothing(tmp_path: Path) -> None:
    machine = tree(tmp_path, {**V2_LIMITED, f"{V2}/memory.max": f"{100 * GIB}"})
    assert machine.memory_limit_bytes == machine.memory_total_bytes == TOTAL


def test_physical_memory_comes_from_the_system_without_proc(tmp_path: Path) -> None:
    """As on systems that have no ``/proc``: no limit, no resident memory, but a size."""
    machine = read_machine(tmp_path)
    assert machine.memory_limit_bytes == os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    assert machine.memory_available_bytes() == machine.memory_limit_bytes
    assert machine.rss_bytes() == 0
    assert machine.cpus == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("statm", "pages"), [("5000 1234 500 1 0 600 0\n", 1234), ("5000", 0), ("a b c", 0), ("", 0)]
)
def test_resident_memory(tmp_path: Path, statm: str, pages: int) -> None:
    machine = tree(tmp_path, {"proc/self/statm": statm})
    assert machine.rss_bytes() == pages * resource.getpagesize()


MOUNTS = (
    "27 1 254:0 / / rw - overlay overlay rw\n"
    "28 27 0:40 / /spool rw - tmpfs tmpfs rw\n"
    "29 28 0:41 / /spool/disk rw - ext4 /dev/vdb rw\n"
    "30 27 0:42 / /with\\040space rw - tmpfs tmpfs rw\n"
    "31 27 0:43 / /covered rw - tmpfs tmpfs rw\n"
    "32 27 0:44 / /covered rw - ext4 /dev/vdc rw\n"
)


@pytest.mark.parametrize(
    ("directory", "in_memory"),
    [
        ("/", False),
        ("/spool", True),
        ("/spool/deep/er", True),
        ("/spooler", False),
        ("/spool/disk/a", False),
        ("/with space/a", True),
        ("/covered", False),
    ],
)
def test_temporary_directory_in_memory_by_its_innermost_mount(
    tmp_path: Path, directory: str, *, in_memory: bool
) -> None:
    machine = tree(tmp_path, {"proc/self/mountinfo": MOUNTS})
    assert machine.temp_dir_is_memory(Path(directory)) is in_memory


def test_temporary_directory_is_on_disk_when_nothing_is_known(tmp_path: Path) -> None:
    assert not tree(tmp_path, {}).temp_dir_is_memory()


def test_temporary_directory_in_memory_is_described(tmp_path: Path) -> None:
    machine = tree(tmp_path, {"proc/self/mountinfo": "28 27 0:40 / / rw - tmpfs tmpfs rw\n"})
    assert machine.describe()[-1].endswith("(memory)")


@pytest.mark.parametrize(("soft", "expected"), [(1024, 1024), (resource.RLIM_INFINITY, sys.maxsize)])
def test_descriptor_limit_is_the_soft_one(monkeypatch: pytest.MonkeyPatch, soft: int, expected: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    assert descriptor_limit() == expected


def test_description(tmp_path: Path) -> None:
    lines = tree(tmp_path, {**V2_LIMITED, "proc/self/statm": "9 25600 1"}).describe()
    assert lines[0] == "CPUs: 2 (affinity 8, quota 1.50)"
    assert lines[1] == "memory limit: 1024 MiB of 24576 MiB"
    assert lines[2] == "memory available: 674 MiB"
    assert lines[3] == f"memory resident: {25600 * resource.getpagesize() // MIB} MiB"
    assert tree(tmp_path, UNLIMITED_V2).describe()[0] == "CPUs: 8 (affinity 8, quota none)"


def test_this_machine_agrees_with_the_kernel() -> None:
    """Where the tests run, the real files are read: resident memory is near what the kernel's peak says."""
    machine = read_machine()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0 < machine.rss_bytes() <= peak + 64 * MIB
    assert 1 <= machine.cpus <= machine.affinity
    assert 0 < machine.memory_available_bytes() <= machine.memory_limit_bytes <= machine.memory_total_bytes


@given(text=st.binary(max_size=200))
def test_any_content_is_survived(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    """Whatever a file holds, the machine has a processor and its available memory is within its limit."""
    root = tmp_path_factory.mktemp("any")
    for name in (*V2_LIMITED, f"{V2}/memory.limit_in_bytes", f"{V2}/cpu.cfs_quota_us", "proc/meminfo"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    machine = read_machine(root, affinity=4)
    assert 1 <= machine.cpus <= 4
    assert 0 <= machine.memory_available_bytes() <= machine.memory_limit_bytes


def test_no_temporary_directory_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a read-only container: the server starts all the same."""

    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", fail)
    machine = read_machine()

    assert not machine.temp_dir_is_memory()
    assert "none that can be written to" in machine.describe()[-1]


def test_the_peak_of_this_process() -> None:
    machine = read_machine()

    assert machine.peak_rss_bytes() >= machine.rss_bytes() // 2 > 0


def test_no_peak_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert replace(read_machine(), root=tmp_path).peak_rss_bytes() == 0
