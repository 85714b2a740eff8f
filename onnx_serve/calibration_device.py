"""What a calibration finds out about a GPU: how much of its memory a model takes, and what is not run on it."""

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from onnx_serve import cuda
from onnx_serve.calibration_measures import fit_line, profile_events, read_profile
from onnx_serve.calibration_process import CalibrationRequest
from onnx_serve.machine import read_gpus
from onnx_serve.nvml import NVML, Gpu, Nvml

__all__ = ["CpuShare", "DeviceMemory", "device_entries", "device_of", "read_cpu_share"]

_CPU = "CPUExecutionProvider"
_POLL_S = 0.01
# Their time is that of the nodes in their bodies, which have events of their own.
_WITH_BODIES = frozenset(("If", "Loop", "Scan"))
_MAX_OPERATORS = 3
_MAX_NAME = 60


class DeviceMemory:
    """The memory that this process takes of a GPU; nothing where there is none. Thread-safe.

    Args:
        gpu: As it was before this process used it; None for a model that runs on no GPU.
        nvml: What is asked.
    """

    def __init__(self, gpu: Gpu | None, nvml: Nvml = NVML) -> None:
        self._gpu = gpu
        self._nvml = nvml
        self._before = self._peak = 0
        # What the arena of a session may take, and so what is planned with.
        self.budget_bytes = 0 if gpu is None else cuda.budget_bytes(gpu)

    def used(self) -> int:
        """Bytes that the process has taken; where nobody counts them, what the whole GPU has lost meanwhile."""
        if self._gpu is None:
            return 0
        own = self._nvml.used_bytes(self._gpu, os.getpid())
        if own is not None:
            return own
        free = self._nvml.free_bytes(self._gpu)
        return 0 if free is None else max(self._gpu.free_bytes - free, 0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Looks again and again while the block runs; ``growth`` then tells by how much it grew at most."""
        self._before = self._peak = self.used()
        if self._gpu is None:
            yield
            return
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_POLL_S):
                self._peak = max(self._peak, self.used())

        thread = threading.Thread(target=look, name="onnx-serve-device", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._peak = max(self._peak, self.used())

    @property
    def growth(self) -> int:
        """By how much more was taken at the peak than at the beginning, while it was ``watched`` last."""
        return self._peak - self._before


def device_of(request: CalibrationRequest) -> DeviceMemory:
    """The memory of the GPU that a model is to be measured on.

    Args:
        request: The order; its key tells whether CUDA is expected.
    """
    gpu = None
    if cuda.CUDA in request.key.providers:
        gpu = cuda.find_gpu(request.provider_options, read_gpus())
    return DeviceMemory(gpu)


class CpuShare(NamedTuple):
    """How much of a model's run stays on the processors although it has a GPU.

    Attributes:
        nodes: Share of the nodes.
        time: Share of the run's time.
        operators: Those that took the most time, the largest first.
    """

    nodes: float
    time: float
    operators: tuple[str, ...]


def device_entries(path: Path, rows: Sequence[int]) -> dict[str, Any]:
    """Entries of a calibration, by name, that the profile of a model on a GPU gives; those that it does not are left out.

    Args:
        path: The file.
        rows: Of the last runs; 0 for one that is not to count.
    """
    entries: dict[str, Any] = {}
    share = read_cpu_share(path)
    if share is not None:
        entries.update(cpu_node_share=share.nodes, cpu_time_share=share.time, cpu_operators=share.operators)
    use = read_profile(path, len(rows), on_device=True)
    if use is not None:
        points = [(count, most) for count, most in zip(rows, use.runs, strict=True) if count]
        fixed, row = fit_line(points)
        entries.update(
            device_warm_up_bytes=use.warm_up, device_run_fixed_bytes=fixed, device_run_row_bytes=row
        )
    return entries


def read_cpu_share(path: Path) -> CpuShare | None:
    """What a profile says of its last run, or None if it has none.

    The node events of a GPU's provider last only as long as it takes to start their kernels, those of the CPU as long
    as they compute: the latter are compared with the whole run, which ends when the GPU has.

    Args:
        path: The file that onnxruntime has written
            (https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html).
    """
    nodes: list[Mapping[str, Any]] = []
    share = None
    for event in profile_events(path):
        if event.get("cat") == "Node":
            nodes.append(event)
        elif event.get("name") == "model_run":
            share = _share_of(nodes, _duration(event))
            nodes = []
    return share


def _share_of(nodes: list[Mapping[str, Any]], run: float) -> CpuShare:
    """Shares of one run, which took so many microseconds."""
    times: Counter[str] = Counter()
    counts = dict.fromkeys((True, False), 0)
    for event in nodes:
        arguments = event.get("args", {})
        on_cpu = arguments.get("provider") == _CPU
        counts[on_cpu] += 1
        operator = str(arguments.get("op_name", ""))
        if on_cpu and operator not in _WITH_BODIES:
            times["".join(c for c in operator[:_MAX_NAME] if c.isprintable())] += _duration(event)
    return CpuShare(
        counts[True] / max(len(nodes), 1),
        min(sum(times.values()) / max(run, 1), 1.0),
        tuple(operator for operator, _ in times.most_common(_MAX_OPERATORS)),
    )


def _duration(event: Mapping[str, Any]) -> int:
    """Microseconds."""
    duration = event.get("dur", 0)
    return duration if isinstance(duration, int) else 0
