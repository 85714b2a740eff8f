"""What this container really has: processors, memory, file descriptors, GPUs.

Docker and Kubernetes tell a process what it may use through control groups, not through ``os.cpu_count()``
or ``MemTotal``. Version 1, version 2 and hybrids of both are read, at the process's own group and at every
group above it that the container can see.

Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html,
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html,
https://docs.kernel.org/scheduler/sched-bwc.html (version 1's quota),
https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html.
"""

import math
import os
import re
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from onnx_serve.gpu_driver import read_driver_version
from onnx_serve.nvml import NVML, Gpu

__all__ = ["Machine", "descriptor_limit", "read_gpus", "read_machine"]

# Version 1 says "unlimited" with the largest multiple of a page below 2^63.
_UNLIMITED = 1 << 62
_MIB = 1 << 20


class _Mount(NamedTuple):
    """A line of ``/proc/self/mountinfo``: ``source`` of the file system ``kind`` appears at ``point``."""

    source: str
    point: str
    kind: str
    options: frozenset[str]


class _MemoryUse(NamedTuple):
    """Bytes that a control group may use, uses, and could give back without writing or rereading much."""

    limit: int
    usage: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class Machine:
    """This container's resources, as found at start. Safe to share between threads.

    Attributes:
        cpus: Whole processors that this process may keep busy: its affinity, or the quota rounded up.
        affinity: Processors that the process may run on, whatever the quota.
        quota: Processors' worth of time that the control groups grant, or None for no quota.
        memory_limit_bytes: The least of the control groups' limits and the physical memory.
        memory_total_bytes: The physical memory.
        groups: Directories of the control groups that account this process's memory.
        root: Where ``/proc`` and ``/sys`` lie.
        gpus: The GPUs that this process may use, read anew at each call.
    """

    cpus: int
    affinity: int
    quota: float | None
    memory_limit_bytes: int
    memory_total_bytes: int
    groups: tuple[Path, ...]
    root: Path
    gpus: Callable[[], list[Gpu]] = list

    @property
    def has_gpu(self) -> bool:
        """Whether this process may use a GPU: one that is listed, or a driver whose GPUs nobody can list."""
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1"}
        return bool(self.gpus()) or (not hidden and read_driver_version(self.root) is not None)

    def memory_available_bytes(self) -> int:
        """Bytes that could be allocated now without anything being killed; read anew at each call.

        File cache that no process maps counts as free, shared memory and tmpfs as used.
        """
        available = [self.memory_limit_bytes]
        available += [use.limit - use.usage + use.reclaimable for use in map(_memory_use, self.groups) if use]
        meminfo = _read_table(self.root / "proc/meminfo")
        if "MemAvailable:" in meminfo:
            available.append(meminfo["MemAvailable:"] * 1024)
        return max(0, min(available))

    def rss_bytes(self) -> int:
        """Resident memory of this process, 0 where the system does not tell; read anew at each call.

        Linux keeps the figure per processor and adds up lazily: it may lag by some megabytes
        (https://man7.org/linux/man-pages/man5/proc_pid_statm.5.html).
        """
        words = _read(self.root / "proc/self/statm").split()
        return _whole(words[1]) * resource.getpagesize() if len(words) > 1 else 0

    def peak_rss_bytes(self) -> int:
        """The most resident memory that this process had so far, 0 where the system does not tell."""
        return _read_table(self.root / "proc/self/status").get("VmHWM:", 0) * 1024

    def temp_dir_is_memory(self, directory: Path | None = None) -> bool:
        """Whether files of the temporary directory (or of ``directory``) live in memory (tmpfs, ramfs).

        No when there is no directory that can be written to: nothing can be kept in it then.
        """
        directory = directory or _temp_dir()
        if directory is None:
            return False
        path = PurePosixPath(os.path.realpath(directory))
        holding = [mount for mount in _mounts(self.root) if path.is_relative_to(mount.point)]
        # Of mounts at the same point the last one covers the others.
        inner = max(enumerate(holding), key=lambda item: (len(item[1].point), item[0]), default=None)
        return inner is not None and inner[1].kind in {"tmpfs", "ramfs"}

    def describe(self) -> list[str]:
        """Lines for the log and ``inspect``."""
        quota = "none" if self.quota is None else f"{self.quota:.2f}"
        kind = "memory" if self.temp_dir_is_memory() else "disk"
        return [
            f"CPUs: {self.cpus} (affinity {self.affinity}, quota {quota})",
            f"memory limit: {self.memory_limit_bytes // _MIB} MiB of {self.memory_total_bytes // _MIB} MiB",
            f"memory available: {self.memory_available_bytes() // _MIB} MiB",
            f"memory resident: {self.rss_bytes() // _MIB} MiB",
            *(f"GPU {gpu}" for gpu in self.gpus()),
            f"file descriptors: {descriptor_limit()}",
            f"temporary directory: {_temp_dir() or 'none that can be written to'} ({kind})",
        ]


def read_gpus() -> list[Gpu]:
    """The GPUs that CUDA shows this process, with their memory as it is now; none where that is not known."""
    return NVML.gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))


def read_machine(
    root: Path = Path("/"), *, affinity: int | None = None, gpus: Callable[[], list[Gpu]] = read_gpus
) -> Machine:
    """Reads what the container has; files that are absent, unreadable or garbled limit nothing.

    Args:
        root: Where ``/proc`` and ``/sys`` lie.
        affinity: Processors that the process may run on; None asks the system.
        gpus: Lists the GPUs that the process may use.
    """
    affinity = affinity or _affinity()
    quotas = [quota for group in _groups(root, "cpu") if (quota := _quota(group)) is not None]
    quota = min(quotas, default=None)
    cpus = affinity if quota is None else max(1, min(affinity, math.ceil(quota)))
    total = _read_table(root / "proc/meminfo").get("MemTotal:", 0) * 1024 or _physical_memory()
    groups = tuple(_groups(root, "memory"))
    limits = [use.limit for use in map(_memory_use, groups) if use]
    return Machine(cpus, affinity, quota, min([total, *limits]), total, groups, root, gpus)


def descriptor_limit() -> int:
    """Files and sockets that this process may have open at once (the soft limit)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _temp_dir() -> Path | None:
    """Where temporary files go, or None: a read-only container may have no such place."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return None


def _affinity() -> int:
    # Linux alone has it.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Directories of the control groups with this controller: the process's own and those above it."""
    found: dict[Path, None] = {}
    for mount in _group_mounts(root, controller):
        for path in _group_paths(root, controller, mount):
            for directory in _upward(mount, path):
                inside = root / mount.point.lstrip("/") / directory
                if inside.is_dir():
                    found[inside] = None
    yield from found


def _group_paths(root: Path, controller: str, mount: _Mount) -> Iterator[str]:
    """The process's groups in a mount: ``/`` and what ``/proc/self/cgroup`` names.

    A hybrid has different groups in each hierarchy, and may have others of the same names.
    """
    yield "/"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        # Version 2's line is "0::/path".
        kind = "cgroup2" if (number, controllers) == ("0", "") else "cgroup"
        if mount.kind in {kind, ""} and (kind == "cgroup2" or controller in controllers.split(",")):
            yield path


def _group_mounts(root: Path, controller: str) -> list[_Mount]:
    """Where the control groups of a controller are mounted, or would be by convention."""
    mounts = [
        mount
        for mount in _mounts(root)
        if mount.kind == "cgroup2" or (mount.kind == "cgroup" and controller in mount.options)
    ]
    points = ("/sys/fs/cgroup", f"/sys/fs/cgroup/{controller}")
    return mounts or [_Mount("/", point, "", frozenset()) for point in points]


def _upward(mount: _Mount, path: str) -> Iterator[PurePosixPath]:
    """The directories from a group up to the mount, relative to it.

    A container may see the host's path of its group while the mount shows only that group's subtree: the
    mount's source is then the part of the path to leave out. A path outside the mount leads to the mount.
    """
    group = PurePosixPath(path)
    source = PurePosixPath(mount.source)
    if ".." not in group.parts:
        below = group.relative_to(source if group.is_relative_to(source) else "/") if group.root else group
        yield from (below, *below.parents)
    yield PurePosixPath()


def _quota(group: Path) -> float | None:
    """Processors' worth of time that a group grants; ``cpu.shares`` and ``cpu.weight`` grant none."""
    words = _read(group / "cpu.max").split()
    if not words:
        words = [*_read(group / "cpu.cfs_quota_us").split(), *_read(group / "cpu.cfs_period_us").split()]
    # "max" and -1 mean no quota.
    quota, period = (_whole(word) for word in words) if len(words) == 2 else (0, 0)  # noqa: PLR2004 - quota and period
    return quota / period if quota and period else None


def _memory_use(group: Path) -> _MemoryUse | None:
    """A group's memory, or None if it sets no limit."""
    statistics = _read_table(group / "memory.stat")
    limits = [
        _whole(_read(group / "memory.max")),
        _whole(_read(group / "memory.limit_in_bytes")),
        # Version 1: also the limits of groups that the container cannot see.
        statistics.get("hierarchical_memory_limit", 0),
    ]
    limit = min((limit for limit in limits if 0 < limit < _UNLIMITED), default=None)
    if limit is None:
        return None
    usage = _whole(_read(group / "memory.current")) or _whole(_read(group / "memory.usage_in_bytes"))

    def bytes_of(name: str) -> int:
        # Version 1 counts a group's children under names of their own.
        return statistics.get(f"total_{name}", statistics.get(name, 0))

    # Both lists hold file cache only; what is mapped (libraries, weights) is needed again at once.
    cache = bytes_of("inactive_file") + bytes_of("active_file")
    mapped = bytes_of("file_mapped") or bytes_of("mapped_file")
    return _MemoryUse(limit, usage, min(usage, max(0, cache - mapped)))


def _mounts(root: Path) -> list[_Mount]:
    mounts = []
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) > 5 and len(kind) > 2:  # noqa: PLR2004 - the fixed fields of each half
            source, point = (_unescape(word) for word in fields[3:5])
            mounts.append(_Mount(source, point, kind[0], frozenset(kind[2].split(","))))
    return mounts


def _unescape(word: str) -> str:
    """Mountinfo writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def _read_table(file: Path) -> dict[str, int]:
    """Lines of a name and a number, as ``memory.stat`` and ``/proc/meminfo`` have them."""
    rows = (line.split() for line in _read(file).splitlines())
    return {row[0]: _whole(row[1]) for row in rows if len(row) > 1}


def _whole(text: str) -> int:
    """A positive number, or 0 for anything else."""
    text = text.strip()
    return int(text) if re.fullmatch("[0-9]{1,19}", text) else 0


def _read(file: Path) -> str:
    """A file's text, or nothing if it cannot be read."""
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""
