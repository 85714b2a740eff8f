"""What a session on CUDA gets unless its operator says otherwise, and whether there will be one.

Options of the provider: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.
"""

import contextlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_serve.nvml import Gpu

__all__ = ["CUDA", "CUDA_SLOTS", "budget_bytes", "find_gpu", "is_expected", "with_defaults"]

CUDA = "CUDAExecutionProvider"
# Each run has a stream of its own. While one computes, the other is prepared, sent to the device and fetched from
# it. A third finds the device busy, and would take as much of its memory as the others.
CUDA_SLOTS = 2
_PACKAGE = "onnxruntime-gpu"
_MIB = 1 << 20
# What lies outside of onnxruntime's arena: the context, and the workspaces and code of CUDA's libraries.
_MARGIN_BYTES = 300 * _MIB
_MARGIN_SHARE = 10
# On a GPU that is full: too little for any model, which then says so.
_LEAST_BYTES = 64 * _MIB


def is_expected(providers: str | Sequence[str], *, has_gpu: bool) -> bool:
    """Whether sessions will run on CUDA first of all, as far as that is known before onnxruntime is imported.

    Args:
        providers: Execution providers, or ``"auto"``.
        has_gpu: Whether this process may use a GPU.
    """
    if not isinstance(providers, str):
        return next(iter(providers), "") == CUDA
    if not has_gpu:
        return False
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(_PACKAGE))
    return False


def find_gpu(provider_options: Mapping[str, Mapping[str, Any]] | None, gpus: Sequence[Gpu]) -> Gpu | None:
    """The GPU that a session on CUDA runs on, or None if it is not known.

    Args:
        provider_options: By provider; CUDA's ``device_id`` chooses, else it is the first.
        gpus: Those that this process may use.
    """
    wanted = str((provider_options or {}).get(CUDA, {}).get("device_id", 0))
    return next((gpu for gpu in gpus if str(gpu.index) == wanted), None)


def budget_bytes(gpu: Gpu) -> int:
    """What onnxruntime's arena may take of a GPU's free memory: all but 300 MiB, or but a tenth."""
    margin = max(_MARGIN_BYTES, gpu.free_bytes // _MARGIN_SHARE)
    return max(gpu.free_bytes - margin, _LEAST_BYTES)


def with_defaults(
    provider_options: Mapping[str, Mapping[str, Any]] | None, gpus: Sequence[Gpu]
) -> dict[str, dict[str, Any]]:
    """Options of providers with those of CUDA that the operator left open.

    The arena grows by what is asked for: on a device all that it holds is taken, touched or not. It is limited to the
    budget, so that a run that needs more fails in onnxruntime, cleanly, and not in a library of CUDA.

    Args:
        provider_options: By provider, as the operator gave them.
        gpus: Those that this process may use, as they are before the session is made.
    """
    options = {name: dict(given) for name, given in (provider_options or {}).items()}
    defaults: dict[str, Any] = {"arena_extend_strategy": "kSameAsRequested"}
    gpu = find_gpu(options, gpus)
    if gpu is not None:
        defaults["gpu_mem_limit"] = budget_bytes(gpu)
    options[CUDA] = {**defaults, **options.get(CUDA, {})}
    return options
