"""A container's limits without a container: a control group with so much memory and so many processors.

Sources: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html,
https://docs.kernel.org/scheduler/sched-bwc.html (version 1's quota),
https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

import itertools
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000
_numbers = itertools.count()


class ControlGroupError(Exception):
    """Control groups cannot be made here."""


class ControlGroup:
    """A limit for the processes that enter; made and removed by ``with``, once they have ended.

    Args:
        memory_bytes: What they may hold together, file cache included.
        cpus: Processors' worth of time that they may use together.

    Raises:
        ControlGroupError: On entering, if neither version of control groups can be written to.
    """

    def __init__(self, memory_bytes: int, cpus: float) -> None:
        name = f"onnx-serve-bench-{os.getpid()}-{next(_numbers)}"
        quota = f"{int(cpus * _PERIOD_US)}"
        self._one = (_ROOT / "memory" / "memory.limit_in_bytes").exists()
        limits: tuple[tuple[str, str, str], ...] = (
            ("memory", "memory.limit_in_bytes", str(memory_bytes)),
            ("cpu", "cpu.cfs_period_us", str(_PERIOD_US)),
            ("cpu", "cpu.cfs_quota_us", quota),
        )
        if not self._one:
            limits = (("", "memory.max", str(memory_bytes)), ("", "cpu.max", f"{quota} {_PERIOD_US}"))
        self._limits = [(_ROOT / controller / name / file, text) for controller, file, text in limits]
        self._memory = self._limits[0][0].parent

    @property
    def entrances(self) -> list[str]:
        """Files that a process writes its id into to enter."""
        return sorted({str(file.parent / "cgroup.procs") for file, _ in self._limits})

    @property
    def peak_bytes(self) -> int:
        """The most that its processes held together, file cache included; 0 where the kernel does not tell."""
        return _number(self._memory / ("memory.max_usage_in_bytes" if self._one else "memory.peak"))

    @property
    def kills(self) -> int:
        """Processes that were killed for memory."""
        return _entry(self._memory / ("memory.oom_control" if self._one else "memory.events"), "oom_kill")

    def __enter__(self) -> Self:
        try:
            if not self._one:
                (_ROOT / "cgroup.subtree_control").write_text("+memory +cpu")
            for file, text in self._limits:
                file.parent.mkdir(exist_ok=True)
                file.write_text(text)
        except OSError as ex:
            self._remove()
            raise ControlGroupError(
                f"no control group can be made under {_ROOT}: {ex.strerror}; run as root where it can be written to"
            ) from ex
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        """The kernel lets go of ended processes a moment late."""
        for folder in {file.parent for file, _ in self._limits}:
            for _ in range(100):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.05)
                else:
                    break


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def _entry(file: Path, name: str) -> int:
    try:
        words = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(value) for key, value in words if key == name), 0)
