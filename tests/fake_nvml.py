"""Stand-ins for NVIDIA's management library: a Python object, and a shared library built from C."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
GIB = 1 << 30
UUIDS = (
    "GPU-1b2c3d4e-0000-1111-2222-333344445555",
    "GPU-1b2cffff-0000-1111-2222-333344445555",
    "GPU-99999999-0000-1111-2222-333344445555",
)
INSTANCE = "MIG-77777777-0000-1111-2222-333344445555"
INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, INSUFFICIENT_SIZE, GPU_IS_LOST = 2, 3, 6, 7, 15


@dataclass
class FakeLibrary:
    """Three GPUs and an instance of one, with the functions of NVML as ctypes would call them.

    Attributes:
        errors: By function, the code that it gives.
        processes: Of every GPU: number and bytes.
        free: Bytes, of every GPU.
        calls: Names of the functions that were called.
    """

    errors: dict[str, int] = field(default_factory=dict)
    processes: list[tuple[int, int]] = field(default_factory=list)
    free: int = 10 * GIB
    uuids: tuple[str, ...] = UUIDS
    calls: list[str] = field(default_factory=list)
    missing: frozenset[str] = frozenset()

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(type(self), f"_{name}", None)
        if function is None or name in self.missing:
            raise AttributeError(f"{name}: undefined symbol")

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return self.errors.get(name) or int(function(self, *arguments))

        call.__name__ = name
        return call

    def _nvmlInit_v2(self) -> int:  # noqa: N802 - NVML's name
        return 0

    def _nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.uuids)
        return 0

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:  # noqa: N802
        device._obj.value = 1000 + index.value
        return 0

    def _nvmlDeviceGetHandleByUUID(self, uuid: bytes, device: Any) -> int:  # noqa: N802
        known = [*self.uuids, INSTANCE]
        if uuid.decode() not in known:
            return NOT_FOUND
        device._obj.value = 1000 + known.index(uuid.decode())
        return 0

    def _nvmlDeviceGetUUID(self, device: Any, buffer: Any, length: Any) -> int:  # noqa: N802
        assert length.value == len(buffer) == 96
        buffer.value = [*self.uuids, INSTANCE][device.value - 1000].encode()
        return 0

    def _nvmlDeviceGetName(self, device: Any, buffer: Any, length: Any) -> int:  # noqa: N802
        buffer.value = b"Tesla T4"
        return 0

    def _nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:  # noqa: N802
        memory._obj.total, memory._obj.free = 16 * GIB, self.free
        memory._obj.used = 16 * GIB - self.free
        return 0

    def _nvmlDeviceGetCudaComputeCapability(self, device: Any, major: Any, minor: Any) -> int:  # noqa: N802
        if device.value - 1000 == len(self.uuids):
            return INVALID_ARGUMENT
        major._obj.value, minor._obj.value = 7, 5
        return 0

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, device: Any, count: Any, processes: Any) -> int:  # noqa: N802
        room, count._obj.value = count._obj.value, len(self.processes)
        if room < len(self.processes):
            return INSUFFICIENT_SIZE
        for index, (pid, used) in enumerate(self.processes):
            processes[index].pid, processes[index].used = pid, used
        return 0

    _nvmlDeviceGetComputeRunningProcesses_v2 = _nvmlDeviceGetComputeRunningProcesses_v3  # noqa: N815

    def _nvmlSystemGetDriverVersion(self, buffer: Any, length: Any) -> int:  # noqa: N802
        buffer.value = b"535.183.01"
        return 0


# One GPU. Each question after its memory finds 1 MiB less of it free, and the caller's process with 1 MiB more.
SOURCE = """
#include <stdio.h>
#include <unistd.h>
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct {
    unsigned int pid; unsigned long long usedGpuMemory; unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;
static unsigned long long asked;
int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = &asked; return index != 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = &asked; return uuid[0] != 'G'; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned int length) {
    return device != &asked || snprintf(text, length, "GPU-fake") < 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned int length) {
    return device != &asked || snprintf(text, length, "Fake GPU") < 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned int length) {
    return snprintf(text, length, "580.65.06") < 0; }
int nvmlDeviceGetMemoryInfo(void *device, nvmlMemory_t *memory) {
    if (device != &asked) return 1;
    memory->total = 16ull << 30;
    memory->free = ((unsigned long long)FREE_MIB << 20) - (asked++ << 20);
    memory->used = memory->total - memory->free;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = 8; *minor = 6; return device != &asked; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, nvmlProcessInfo_t *processes) {
    if (device != &asked) return 1;
    if (*count < 2) { *count = 2; return 7; }
    *count = LISTED ? 2 : 0;
    processes[0] = (nvmlProcessInfo_t){1, 1ull << 40, ~0u, ~0u};
    processes[1] = (nvmlProcessInfo_t){getpid(), (100ull + asked++) << 20, ~0u, ~0u};
    return 0;
}
"""


def build_library(folder: Path, *, init: int = 0, free_mib: int = 8192, listed: bool = True) -> Path:
    """Compiles ``libnvidia-ml.so.1`` into a folder, or skips the test where there is no compiler.

    Args:
        folder: Where it is put.
        init: The code that ``nvmlInit_v2`` gives.
        free_mib: Memory that is free at first.
        listed: Whether the caller's process is listed, as it is not in every container.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = folder / "nvml.c", folder / "libnvidia-ml.so.1"
    source.write_text(SOURCE)
    defines = [f"-DINIT={init}", f"-DFREE_MIB={free_mib}", f"-DLISTED={int(listed)}"]
    subprocess.run([compiler, "-shared", "-fPIC", *defines, "-o", library, source], check=True)
    return library


def open_built(library: Path) -> ctypes.CDLL:
    """The compiled library, loaded the way the real one is."""
    return ctypes.CDLL(str(library))
