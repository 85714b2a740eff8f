"""Whether the machine's NVIDIA driver is new enough for the CUDA libraries that onnxruntime is built with.

The libraries come with the image, the driver with the machine. One that is too old shows up deep inside CUDA,
as a provider that cannot be started; here both versions are read beforehand and named in one line.

NVIDIA's rule: any driver from a CUDA major version's first one on runs every release of that major version
(https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
"""

import re
from pathlib import Path

__all__ = ["driver_problem", "read_driver_version"]

# CUDA's major version: the first driver branch for it, as in the table of the page above.
_FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
# The kernel module names itself in one of these ways, the second one being the open module's:
#   NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
#   NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)
_VERSION = re.compile(r"^NVRM version:.*?\s([0-9]{3,4}(?:\.[0-9]{1,4}){1,3})(?:\s|$)", re.MULTILINE)
_MAX_CHARACTERS = 4096


def read_driver_version(root: Path = Path("/")) -> str | None:
    """The version of the NVIDIA kernel driver that is loaded, such as ``"535.183.01"``.

    A container sees its machine's. None where there is none, or where it does not say.

    Args:
        root: Where ``/proc`` lies.
    """
    try:
        with (root / "proc/driver/nvidia/version").open(encoding="utf-8", errors="replace") as file:
            found = _VERSION.search(file.read(_MAX_CHARACTERS))
    except OSError:
        return None
    return found[1] if found else None


def driver_problem(driver: str | None, package: str, cuda: str) -> str | None:
    """One line that says why CUDA cannot start, or None if the driver is new enough or nothing is known.

    Args:
        driver: What ``read_driver_version`` gave.
        package: The onnxruntime in use, with its version: ``"onnxruntime-gpu 1.26.0"``.
        cuda: The CUDA version it is built with, as ``onnxruntime.cuda_version`` says it; empty for none.
    """
    major = cuda.partition(".")[0]
    needed = _FIRST_DRIVER.get(int(major)) if re.fullmatch("[0-9]{1,4}", major) else None
    if driver is None or needed is None:
        return None
    branch = driver.partition(".")[0]
    if not re.fullmatch("[0-9]{1,9}", branch) or int(branch) >= needed:
        return None
    return (
        f"the machine's NVIDIA driver {driver} is too old for {package}, which is built with CUDA {cuda} and "
        f"needs driver {needed} or later: choose a machine image with a newer driver (TransformAmiVersion or "
        f"InferenceAmiVersion), or the CPU variant of this server"
    )
