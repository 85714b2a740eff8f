"""Calibrations for tests, as they might have been measured."""

from typing import Any

from onnx_serve.calibration_record import Calibration, CalibrationKey, Rung

MIB = 1 << 20


def make_key(**changes: Any) -> CalibrationKey:
    """A key of some model on two processors."""
    values: dict[str, Any] = {
        "model_sha256": "a" * 64,
        "onnxruntime": "onnxruntime 1.32.0",
        "providers": ("CPUExecutionProvider",),
        "cpus": 2,
        "machine": "x86_64",
        "options": "b" * 32,
    }
    return CalibrationKey(**{**values, **changes})


def make(**changes: Any) -> Calibration:
    """What might have been measured of a small model."""
    values: dict[str, Any] = {
        "key": make_key(),
        "origin": "measured",
        "reason": "",
        "reached": "all",
        "memory_bytes": 1 << 30,
        "fits": True,
        "limited": False,
        "load_peak_bytes": 30 * MIB,
        "session_bytes": 20 * MIB,
        "arena_bytes": 10 * MIB,
        "warm_up_bytes": 0,
        "slots": 2,
        "block_rows": 2,
        "ladder": (Rung(1, 1e-3, 1e-3), Rung(2, 1.5e-3, 1.5e-3)),
        "run_fixed_bytes": 0,
        "run_row_bytes": MIB,
        "burst_bytes": 5 * MIB,
        "row_input_bytes": 16,
        "row_output_bytes": 0,
        "row_elements": 4,
        "data_dependent": False,
        "arena_only": True,
        "feed": "made up",
        "seconds": 1.5,
    }
    return Calibration(**{**values, **changes})
