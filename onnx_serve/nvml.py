"""NVIDIA's management library: which GPUs this process may use, and what of their memory is taken.

It comes with the driver, so it is opened where it is found and nothing depends on it: without it, or with one that
answers with an error or not at all, there are no GPUs as far as this module can tell. Asking it makes no CUDA
context, which would take some hundred megabytes of the device.

Functions, structures and codes: https://docs.nvidia.com/deploy/nvml-api/. The library is thread-safe.
"""

import ctypes
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["NVML", "Gpu", "Nvml"]

_log = logging.getLogger("onnx_serve")

T = TypeVar("T")

_LIBRARY = "libnvidia-ml.so.1"
# Without a process that keeps the driver awake, starting it takes a second or two for each GPU.
_PATIENCE_S = 10.0
_SUCCESS = 0
_INSUFFICIENT_SIZE = 7
# NVML_VALUE_NOT_AVAILABLE, as the structure's unsigned long long has it.
_NOT_AVAILABLE = (1 << 64) - 1
# NVML_DEVICE_UUID_V2_BUFFER_SIZE and NVML_DEVICE_NAME_V2_BUFFER_SIZE; the driver's version takes 80 at most.
_TEXT_BYTES = 96
_MAX_GPUS = 256
_PROCESSES = 64
_MAX_PROCESSES = 1 << 16


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or an instance of one, as it was when it was asked for.

    Attributes:
        index: Its number for CUDA in this process, and for ``device_id`` of onnxruntime's provider.
        name: As its maker calls it, ``"Tesla T4"``.
        uuid: ``"GPU-..."`` or ``"MIG-..."``.
        total_bytes: Its memory.
        free_bytes: What of it nobody has taken.
        compute_capability: Its generation, ``(7, 5)``; ``(0, 0)`` where the library does not tell.
    """

    index: int
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return (
            f"{self.index}: {self.name}, compute capability {major}.{minor}, "
            f"{self.free_bytes >> 20} MiB free of {self.total_bytes >> 20} MiB"
        )


class _Memory(ctypes.Structure):
    """``nvmlMemory_t``, 24 bytes."""

    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


class _Process(ctypes.Structure):
    """``nvmlProcessInfo_t`` of versions 2 and 3 of the call, 24 bytes."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class _NvmlError(Exception):
    """A call gave a code other than success."""


def _open_library() -> Any:
    return ctypes.CDLL(_LIBRARY)


class Nvml:
    """The library, opened at the first question and kept open. Thread-safe; raises nothing.

    Questions are put to it in a thread of their own, because a driver in trouble may never answer: after the
    patience has run out once, everything counts as unknown for good.

    Args:
        open_library: Gives an object with the library's functions; OSError where there is none.
        patience_s: Seconds that an answer may take.
    """

    def __init__(
        self, open_library: Callable[[], Any] = _open_library, patience_s: float = _PATIENCE_S
    ) -> None:
        self._open_library = open_library
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._library: Any = None
        self._absent = False
        self._problem = ""

    def gpus(self, visible: str | None = None) -> list[Gpu]:
        """The GPUs that CUDA shows this process, in CUDA's order; none where that is not known.

        CUDA's order is the library's where ``CUDA_DEVICE_ORDER`` is ``PCI_BUS_ID`` or all GPUs are alike, as in all
        of the platform's machines.

        Args:
            visible: The variable ``CUDA_VISIBLE_DEVICES``: indices or (beginnings of) UUIDs, of which those before
                the first unknown one count; None where it is not set, and then all GPUs are visible
                (https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables).
        """
        return self._ask(lambda library: _visible_gpus(library, visible), [])

    def used_bytes(self, gpu: Gpu, pid: int) -> int | None:
        """Memory of a GPU that a process has taken, or None where that is not known.

        In a container the library may know the process by its number on the machine only, or not list it: what the
        whole GPU has lost meanwhile must then do.

        Args:
            gpu: Which one.
            pid: Whose.
        """
        return self._ask(lambda library: _process_bytes(library, _by_uuid(library, gpu.uuid), pid), None)

    def free_bytes(self, gpu: Gpu) -> int | None:
        """Memory of a GPU that nobody has taken now, or None where that is not known."""

        def ask(library: Any) -> int | None:
            return int(_memory(library, _by_uuid(library, gpu.uuid)).free)

        return self._ask(ask, None)

    def driver_version(self) -> str | None:
        """The driver's version, such as ``"535.183.01"``, or None where there is none."""
        return self._ask(lambda library: _text(library.nvmlSystemGetDriverVersion) or None, None)

    def _ask(self, question: Callable[[Any], T], otherwise: T) -> T:
        """An answer of the library, or the other one if it has none in time."""
        if self._absent:
            return otherwise
        answers: list[T] = []

        def ask() -> None:
            try:
                answers.append(question(self._opened()))
            except (OSError, AttributeError, _NvmlError) as ex:
                # AttributeError: an older library, without one of the functions.
                self._say(str(ex))
                self._absent = self._absent or self._library is None

        try:
            thread = threading.Thread(target=ask, name="onnx-serve-nvml", daemon=True)
            thread.start()
        except RuntimeError:
            # No more threads: whoever needs one will say so better.
            return otherwise
        thread.join(self._patience_s)
        if thread.is_alive():
            self._absent = True
            self._say(f"no answer within {self._patience_s:g} s")
            return otherwise
        return answers[0] if answers else otherwise

    def _say(self, problem: str) -> None:
        """One line for whoever looks for the cause; one more only for another problem."""
        if problem != self._problem:
            self._problem = problem
            _log.debug("NVML: %s", problem)

    def _opened(self) -> Any:
        with self._lock:
            if self._library is None:
                library = self._open_library()
                _check(library.nvmlInit_v2)
                self._library = library
            return self._library


NVML = Nvml()


def _check(function: Callable[..., int], *arguments: Any) -> None:
    code = function(*arguments)
    if code != _SUCCESS:
        raise _NvmlError(f"{_name(function)} gave error {code}")


def _name(function: Callable[..., int]) -> str:
    return getattr(function, "__name__", "a call")


def _text(function: Callable[..., int], *arguments: Any) -> str:
    """What a function writes that takes a buffer and its length at its end."""
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    _check(function, *arguments, buffer, ctypes.c_uint(_TEXT_BYTES))
    return "".join(c if c.isprintable() else "?" for c in buffer.value.decode("utf-8", "replace"))


def _visible_gpus(library: Any, visible: str | None) -> list[Gpu]:
    return [_read_gpu(library, index, device) for index, device in enumerate(_devices(library, visible))]


def _devices(library: Any, visible: str | None) -> list[ctypes.c_void_p]:
    """Handles of the visible GPUs."""
    count = ctypes.c_uint()
    _check(library.nvmlDeviceGetCount_v2, ctypes.byref(count))
    devices = [_by_index(library, index) for index in range(min(count.value, _MAX_GPUS))]
    if visible is None:
        return devices
    uuids = [_text(library.nvmlDeviceGetUUID, device) for device in devices]
    found: dict[str, ctypes.c_void_p] = {}
    for word in visible.split(","):
        name = word.strip()
        if re.fullmatch("[0-9]{1,4}", name) and int(name) < len(devices):
            name = uuids[int(name)]
        matching = [uuid for uuid in uuids if name.startswith("GPU-") and uuid.startswith(name)]
        if name.startswith("MIG-"):
            device = _instance(library, name)
        else:
            # A beginning that fits several names none.
            device = devices[uuids.index(matching[0])] if len(matching) == 1 else None
            name = matching[0] if matching else name
        if device is None or name in found:
            break
        found[name] = device
    return list(found.values())


def _by_index(library: Any, index: int) -> ctypes.c_void_p:
    device = ctypes.c_void_p()
    _check(library.nvmlDeviceGetHandleByIndex_v2, ctypes.c_uint(index), ctypes.byref(device))
    return device


def _by_uuid(library: Any, uuid: str) -> ctypes.c_void_p:
    device = ctypes.c_void_p()
    _check(library.nvmlDeviceGetHandleByUUID, uuid.encode(), ctypes.byref(device))
    return device


def _instance(library: Any, uuid: str) -> ctypes.c_void_p | None:
    """An instance of a GPU that has been divided, or None if there is none of this name."""
    try:
        return _by_uuid(library, uuid)
    except _NvmlError:
        return None


def _read_gpu(library: Any, index: int, device: ctypes.c_void_p) -> Gpu:
    memory = _memory(library, device)
    return Gpu(
        index,
        _text(library.nvmlDeviceGetName, device),
        _text(library.nvmlDeviceGetUUID, device),
        memory.total,
        memory.free,
        _compute_capability(library, device),
    )


def _memory(library: Any, device: ctypes.c_void_p) -> _Memory:
    memory = _Memory()
    _check(library.nvmlDeviceGetMemoryInfo, device, ctypes.byref(memory))
    return memory


def _compute_capability(library: Any, device: ctypes.c_void_p) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    try:
        _check(library.nvmlDeviceGetCudaComputeCapability, device, ctypes.byref(major), ctypes.byref(minor))
    except _NvmlError:
        # Not documented for instances of a divided GPU.
        return 0, 0
    return major.value, minor.value


def _process_bytes(library: Any, device: ctypes.c_void_p, pid: int) -> int | None:
    """What a process has taken of a GPU's memory; None if it is not listed, or its memory is not told."""
    # Version 3 came with driver 510 and has the structure of version 2.
    list_processes = getattr(library, "nvmlDeviceGetComputeRunningProcesses_v3", None)
    list_processes = list_processes or library.nvmlDeviceGetComputeRunningProcesses_v2
    room = _PROCESSES
    while room <= _MAX_PROCESSES:
        count, processes = ctypes.c_uint(room), (_Process * room)()
        code = list_processes(device, ctypes.byref(count), processes)
        if code != _INSUFFICIENT_SIZE:
            break
        room = max(2 * room, 2 * count.value)
    if code != _SUCCESS:
        raise _NvmlError(f"{_name(list_processes)} gave error {code}")
    used = [process.used for process in processes[: min(count.value, room)] if process.pid == pid]
    return sum(used) if used and _NOT_AVAILABLE not in used else None
