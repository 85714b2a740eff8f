"""What the NVIDIA kernel module says of itself, and what follows for CUDA; the texts are recorded."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_serve.gpu_driver import driver_problem, read_driver_version

PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024
GCC version:  gcc version 7.3.1 20180712 (Red Hat 7.3.1-17) (GCC)
"""
BATCH_535 = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 10.5.0 20230707 (Red Hat 10.5.0-1) (GCC)
"""
OPEN_MODULE = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22-I3-B04-02-2)  Sun Jul 27 06:54:38 UTC 2025
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)
"""


def write(root: Path, text: str) -> Path:
    file = root / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "version"),
    [
        pytest.param(PROPRIETARY, "470.256.02", id="proprietary module"),
        pytest.param(BATCH_535, "535.183.01", id="gcc 10.5.0 is not the driver"),
        pytest.param(OPEN_MODULE, "580.65.06", id="open module"),
        pytest.param("NVRM version: NVIDIA UNIX x86_64 Kernel Module  525.60\n", "525.60", id="two parts"),
        pytest.param("", None, id="empty"),
        pytest.param("GCC version:  gcc version 10.5.0\n", None, id="no line of the module"),
        pytest.param("NVRM version: unknown\n", None, id="no number"),
        pytest.param("x" * 100_000 + "\nNVRM version: NVIDIA Module  580.65.06\n", None, id="not read to its end"),
    ],
)  # fmt: skip
def test_version_of_the_driver(tmp_path: Path, text: str, version: str | None) -> None:
    assert read_driver_version(write(tmp_path, text)) == version


def test_no_driver(tmp_path: Path) -> None:
    assert read_driver_version(tmp_path) is None


def test_unreadable_bytes_are_no_version(tmp_path: Path) -> None:
    file = write(tmp_path, "") / "proc/driver/nvidia/version"
    file.write_bytes(b"\xff\xfe\x00NVRM version: \xff\n")

    assert read_driver_version(tmp_path) is None


@pytest.mark.parametrize(
    ("driver", "cuda", "needed"),
    [
        pytest.param("470.256.02", "12.8", 525, id="470 cannot run CUDA 12"),
        pytest.param("535.183.01", "13.0", 580, id="535 cannot run CUDA 13"),
        pytest.param("525.60.13", "12.8", None, id="the first one for CUDA 12"),
        pytest.param("535.183.01", "12.8", None, id="535 runs CUDA 12"),
        pytest.param("580.65.06", "13.0", None, id="the first one for CUDA 13"),
        pytest.param("1000.1", "13.0", None, id="versions are numbers, not text"),
        pytest.param("470.256.02", "", None, id="onnxruntime without CUDA"),
        pytest.param("470.256.02", "99.0", None, id="a CUDA of the future"),
        pytest.param(None, "12.8", None, id="no driver"),
        pytest.param("beta.1", "12.8", None, id="no number"),
    ],
)
def test_driver_against_cuda(driver: str | None, cuda: str, needed: int | None) -> None:
    """The line names both versions, what is needed and what to do."""
    problem = driver_problem(driver, "onnxruntime-gpu 1.26.0", cuda)

    if needed is None:
        assert problem is None
    else:
        assert problem is not None
        assert "\n" not in problem
        for word in (
            driver,
            "onnxruntime-gpu 1.26.0",
            f"CUDA {cuda}",
            f"driver {needed}",
            "TransformAmiVersion",
        ):
            assert str(word) in problem


@given(driver=st.text(), cuda=st.text())
def test_nothing_is_raised(driver: str, cuda: str) -> None:
    assert driver_problem(driver, "onnxruntime-gpu", cuda) is None or int(driver.partition(".")[0]) < 580
