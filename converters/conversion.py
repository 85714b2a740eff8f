"""What a converter makes, and how it becomes a model folder: the road that all frameworks share.

A framework's module has ``convert_file(request, kind) -> Conversion``, which reads an artifact, and
``convert(object, ...) -> Conversion`` for Python. A ``Conversion`` holds no object of the framework: only the
graph and recorded answers, so that it passes from the process that read the artifact to the one that
judges and writes (``save`` and ``load``).
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from converters import artifact, parity
from converters.errors import ConversionError, ConversionRefused
from converters.probes import SEED
from converters.targets import INSTALLED, find_target, fit
from onnx_serve import __version__
from onnx_serve.calibration_feeds import Feeder
from onnx_serve.errors import ModelError, quote
from onnx_serve.model import Model, SessionOptions, load_model
from onnx_serve.rows import Sample
from onnx_serve.tensors import Array, Tensors, conform

__all__ = [
    "Conversion",
    "Request",
    "finish",
    "judge",
    "load",
    "load_graph",
    "model_bytes",
    "override",
    "prove",
    "save",
    "say_nothing",
    "versions",
]

Progress = Callable[[str], None]

_GOLDEN_ROWS = 5
_PACKAGES = (
    "onnx", "onnxruntime", "numpy", "protobuf", "scikit-learn", "skl2onnx", "xgboost", "xgboost-cpu",
    "lightgbm", "catboost", "skops", "torch", "onnxscript",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asks for; plain values, so that it can be written as JSON.

    Attributes:
        artifact: The file.
        framework: ``auto`` or a framework's name.
        sample: A file of rows (``samples.read``), or None.
        trust_pickle: Whether code inside the artifact may be run.
        options: ``--option key=value``, each understood by one framework's module.
        target: The onnxruntime that will serve, as ``targets.find_target`` takes it.
        tolerances: Overrides of ``parity.Tolerances``, by field.
    """

    artifact: str
    framework: str = "auto"
    sample: str | None = None
    trust_pickle: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    target: str = INSTALLED


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted model with what proves it.

    Attributes:
        model: The graph; tensors beyond protobuf's 2 GB are external, in ``external``.
        framework: Whose artifact it was.
        family: What it is, such as ``RandomForestClassifier``.
        cases: The probes with the original's answers.
        tolerances: What may differ, for this family.
        labels: Class labels by the output whose columns they name, in order.
        notes: What the user should know of this conversion, a sentence each.
        external: Files of external data, by their location as the graph names it.
        properties: Further facts for the graph's metadata.
    """

    model: onnx.ModelProto
    framework: str
    family: str
    cases: tuple[parity.Case, ...]
    tolerances: parity.Tolerances = field(default_factory=parity.Tolerances)
    labels: Mapping[str, list[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    external: Mapping[str, Path] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)


def say_nothing(_: str) -> None:
    """Progress that nobody reads."""


def load_graph(
    model: onnx.ModelProto, external: Mapping[str, Path] | None = None, sample: Sample | None = None
) -> Model:
    """The model as the server loads it.

    Args:
        model: The graph.
        external: Files of its external data by location.
        sample: A feed to try it with: some models refuse whatever is made up.

    Raises:
        ModelError: onnxruntime cannot load it.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-serve-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model_bytes(model))
        for location, source in (external or {}).items():
            target = path.parent / location
            target.parent.mkdir(parents=True, exist_ok=True)
            # onnxruntime follows no link out of the model's folder.
            shutil.copyfile(source, target)
        return load_model(path, "model", SessionOptions(sample=sample))


def _sample_of(probes: Sequence[parity.Probe]) -> Sample | None:
    """The first rows that are compared, the user's where there are any."""
    if not probes:
        return None
    feed = probes[0].feed
    return lambda signature, rows: Feeder(signature, "sample", conform(feed, signature))(rows)


def judge(conversion: Conversion) -> parity.Report:
    """Loads the model as the server does, and compares it with the recorded answers.

    Raises:
        ModelError: onnxruntime cannot load it.
    """
    model = load_graph(
        conversion.model, conversion.external, _sample_of([case.probe for case in conversion.cases])
    )
    return parity.judge(model, conversion.cases, conversion.tolerances)


def prove(  # noqa: PLR0913  each is said by its name
    model: onnx.ModelProto,
    original: parity.Original,
    probes: Iterable[parity.Probe],
    *,
    framework: str,
    family: str,
    tolerances: parity.Tolerances,
    overrides: Mapping[str, float] | None = None,
    columns: Sequence[str] = (),
    classes: Sequence[Any] = (),
    notes: tuple[str, ...] = (),
    properties: Mapping[str, str] | None = None,
    external: Mapping[str, Path] | None = None,
    progress: Progress = say_nothing,
) -> Conversion:
    """Records what the original answers, and lets only a model pass that answers the same.

    Args:
        model: The graph.
        original: The original's way to answer.
        probes: Rows to compare on; the first gives the golden rows.
        framework: Whose artifact it is.
        family: What it is.
        tolerances: What may differ in this family.
        overrides: The user's, by field of ``parity.Tolerances``.
        columns: Names of the columns of a matrix, for the metadata.
        classes: Class labels, for the metadata.
        notes: What the user should know.
        properties: Further metadata.
        external: Files of external data.
        progress: Told what is being done.

    Raises:
        ConversionRefused: It answers otherwise, or cannot be loaded.
    """
    allowed = override(tolerances, overrides or {})
    progress("comparing with the original")
    probes = list(probes)
    try:
        loaded = load_graph(model, external, _sample_of(probes))
    except ModelError as ex:
        raise ConversionRefused(f"{family}: the converted model cannot be served: {ex}") from ex
    cases = parity.record(original, probes, loaded.signature)
    parity.gate(parity.judge(loaded, cases, allowed))
    facts = dict(properties or {})
    if columns:
        facts["onnx_serve.columns"] = json.dumps(list(columns), ensure_ascii=False)
    labels = {"probabilities": list(classes)} if len(classes) else {}
    return Conversion(model, framework, family, cases, allowed, labels, notes, external or {}, facts)


def override(tolerances: parity.Tolerances, overrides: Mapping[str, float]) -> parity.Tolerances:
    """The tolerances with some fields replaced.

    Raises:
        ConversionError: A field is unknown, or its value negative or not finite.
    """
    for name, value in overrides.items():
        if name not in asdict(tolerances):
            raise ConversionError(
                f"tolerances: expected one of {', '.join(asdict(tolerances))}, got {quote(name)}"
            )
        if not 0 <= value < float("inf"):
            raise ConversionError(f"tolerance {name}: expected a number from 0 on, got {value}")
    return replace(tolerances, **overrides)


def finish(
    conversion: Conversion,
    output: Path,
    *,
    source_sha256: str = "",
    target: str = INSTALLED,
    force: bool = False,
    figures: Mapping[str, Any] | None = None,
) -> parity.Report:
    """Proves a conversion and writes its model folder; nothing is written unless it is proven.

    The folder gets ``model.onnx`` (and its external data), ``parity.json``, ``sample.npz`` (a few rows,
    arrays by input name) and ``golden.npz`` (what the model answers to them, by output name).

    Args:
        conversion: From a framework's ``convert``.
        output: The folder to make.
        source_sha256: Hash of the artifact, if there was a file.
        target: The onnxruntime that will serve, as ``targets.find_target`` takes it.
        force: Whether an existing folder is replaced.
        figures: Sizes and speeds before and after optional steps, for ``parity.json``.

    Raises:
        ConversionRefused: The model does not answer as the original does, or the target does not know its opset.
        ConversionError: The folder exists or cannot be written.
    """
    artifact.check_output(output, force=force)
    release = find_target(target)
    golden = _golden(conversion.cases)
    probes_sha256 = artifact.hash_arrays(
        {
            f"{case.probe.name}/{name}": array
            for case in conversion.cases
            for name, array in case.probe.feed.items()
        }
    )
    properties = {
        "onnx_serve.framework": conversion.framework,
        "onnx_serve.family": conversion.family,
        "onnx_serve.artifact_sha256": source_sha256,
        "onnx_serve.probes_sha256": probes_sha256,
        **{f"onnx_serve.labels.{name}": json.dumps(values) for name, values in conversion.labels.items()},
        **conversion.properties,
    }
    model = onnx.ModelProto()
    model.CopyFrom(conversion.model)
    fit(model, release)
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, known | {key: value for key, value in properties.items() if value})
    conversion = replace(conversion, model=model)
    loaded = load_graph(model, conversion.external, _sample_of([case.probe for case in conversion.cases]))
    report = parity.judge(loaded, conversion.cases, conversion.tolerances)
    parity.gate(report)
    record = {
        "framework": conversion.framework,
        "family": conversion.family,
        "artifact_sha256": source_sha256,
        "probes_sha256": probes_sha256,
        "parity": report.to_json(),
        "seed": SEED,
        "converted_at": _now(),
        "notes": list(conversion.notes),
        "opset": next((entry.version for entry in model.opset_import if not entry.domain), None),
        "target_onnxruntime": release.version,
        "versions": versions(),
        **(figures or {}),
    }
    artifact.write_model_folder(
        model_bytes(model), output, parity=record, golden=parity.golden_rows(loaded, golden),
        external=conversion.external, force=force,
    )  # fmt: skip
    return report


def _now() -> str:
    """The time in UTC, or the one that reproducible builds set: https://reproducible-builds.org/specs/source-date-epoch/."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    # Eleven digits end in the year 5138.
    seconds = int(given) if given.isdecimal() and len(given) <= 11 else time.time()  # noqa: PLR2004
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """The versions of the packages that play a part, of those installed."""
    found = {"onnx-serve": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def model_bytes(model: onnx.ModelProto) -> bytes:
    """The file's content; equal for equal graphs."""
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except ValueError as ex:  # protobuf's limit of 2 GB
        raise ConversionError(
            f"the model is too large for one file, and its weights are not external: {ex}"
        ) from ex


def save(conversion: Conversion, folder: Path) -> None:
    """Writes a conversion for another process to ``load``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model_bytes(conversion.model))
    arrays: dict[str, Array] = {}
    cases = []
    for index, case in enumerate(conversion.cases):
        parts = {"feed": case.probe.feed, "expected": case.expected, "rounded": case.rounded}
        entry: dict[str, Any] = {"name": case.probe.name}
        for part, tensors in parts.items():
            entry[part] = None if tensors is None else list(tensors)
            for position, array in enumerate((tensors or {}).values()):
                arrays[f"{index}.{part}.{position}"] = _plain(array)
        cases.append(entry)
    np.savez(folder / "cases.npz", allow_pickle=False, **arrays)
    external = {}
    for location, source in conversion.external.items():
        external[location] = folder / "external" / location
        external[location].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, external[location])
    facts = {
        "framework": conversion.framework,
        "family": conversion.family,
        "cases": cases,
        "tolerances": asdict(conversion.tolerances),
        "labels": dict(conversion.labels),
        "notes": list(conversion.notes),
        "external": list(external),
        "properties": dict(conversion.properties),
    }
    (folder / "conversion.json").write_text(json.dumps(facts))


def load(folder: Path) -> Conversion:
    """Reads what ``save`` wrote; its external data stays in the folder, which must outlive the result."""
    facts = json.loads((folder / "conversion.json").read_text())
    with np.load(folder / "cases.npz", allow_pickle=False) as arrays:
        cases = tuple(_case(index, entry, arrays) for index, entry in enumerate(facts["cases"]))
    return Conversion(
        model=onnx.load(str(folder / "model.onnx"), load_external_data=False),
        framework=facts["framework"],
        family=facts["family"],
        cases=cases,
        tolerances=parity.Tolerances(**facts["tolerances"]),
        labels=facts["labels"],
        notes=tuple(facts["notes"]),
        external={location: _inside(folder / "external", location) for location in facts["external"]},
        properties=facts["properties"],
    )


def _case(index: int, entry: Mapping[str, Any], arrays: Mapping[str, Array]) -> parity.Case:
    def tensors(part: str) -> Tensors:
        return {name: arrays[f"{index}.{part}.{position}"] for position, name in enumerate(entry[part])}

    rounded = None if entry["rounded"] is None else tensors("rounded")
    return parity.Case(parity.Probe(entry["name"], tensors("feed")), tensors("expected"), rounded)


def _inside(folder: Path, location: str) -> Path:
    """A place that a process whose artifact is not trusted has named."""
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConversionError(f"external data: expected a place in the model folder, got {quote(location)}")
    return path


def _plain(array: Array) -> Array:
    """Arrays of objects hold text here; NumPy stores them only at a fixed width, without pickle."""
    return array.astype(str) if array.dtype == object else array


def _golden(cases: Iterable[parity.Case]) -> Tensors:
    """A few rows of the first case, which is the user's sample if there is one."""
    case = next(iter(cases))
    return {name: _plain(array[:_GOLDEN_ROWS]) for name, array in case.probe.feed.items()}
