"""Model folders as a converter writes them, made without one."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnx_serve.model import SessionOptions, load_model
from onnx_serve.tensors import Array, MapTable, Tensors, conform

TOLERANCES = {"rtol": 1e-4, "atol": 1e-5, "ties": 0.01, "rows": 0.0}


def arrays_of(values: Mapping[str, Any]) -> Tensors:
    """Outputs as converters store them: a ZipMap's values, text at a fixed width."""
    found: dict[str, Array] = {}
    for name, value in values.items():
        array = value.values if isinstance(value, MapTable) else np.asarray(value)
        found[name] = array.astype(str) if array.dtype == object else array
    return found


def parity_facts(outputs: Tensors, **changes: Any) -> dict[str, Any]:
    """The content of ``parity.json``; its hashes are made up."""
    entries = [
        {
            "name": name, "kind": "number" if array.dtype.kind == "f" else "label", "rows": 1164,
            "label_disagreements": 0, "ties": 0, "max_abs": 2.5e-7, "p99_abs": 1e-7, "max_rel": 3e-6, "p99_rel": 1e-6,
            "rows_outside": 0, "rows_crossing": 0, "scale": 1.0,
        }
        for name, array in outputs.items()
    ]  # fmt: skip
    return {
        "framework": "sklearn",
        "family": "RandomForestClassifier",
        "artifact_sha256": "a" * 64,
        "probes_sha256": "b" * 64,
        "parity": {
            "passed": True,
            "outputs": entries,
            "unchecked_outputs": [],
            "probes": {"ranges": 1024},
            "tolerances": TOLERANCES,
        },
        "seed": 20240607,
        "converted_at": "2026-01-02T03:04:05+00:00",
        "notes": [],
        "versions": {"onnxruntime": "1.28.0", "scikit-learn": "1.7.0"},
        "model_sha256": "c" * 64,
        **changes,
    }


def convert(folder: Path, make: Callable[[Path], Path], feed: Tensors) -> Path:
    """Writes a model with its golden rows; returns the model's file.

    Args:
        folder: Made if missing.
        make: One of ``onnx_models``.
        feed: A few rows.
    """
    folder.mkdir(exist_ok=True)
    path = make(folder / "model.onnx")
    model = load_model(path, "model", SessionOptions())
    fed = conform(feed, model.signature)
    outputs = arrays_of(model.run(fed))
    np.savez(folder / "sample.npz", allow_pickle=False, **arrays_of(fed))
    np.savez(folder / "golden.npz", allow_pickle=False, **outputs)
    facts = parity_facts(outputs, model_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    (folder / "parity.json").write_text(json.dumps(facts))
    return path


def change_golden(folder: Path, change: Callable[[Tensors], Mapping[str, Any]]) -> None:
    """Writes other golden answers."""
    with np.load(folder / "golden.npz") as golden:
        outputs = dict(golden)
    np.savez(folder / "golden.npz", allow_pickle=False, **change(outputs))


def change_parity(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes ``parity.json`` in place."""
    facts = json.loads((folder / "parity.json").read_text())
    changed = change(facts)
    (folder / "parity.json").write_text(json.dumps(facts if changed is None else changed))
