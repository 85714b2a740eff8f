"""Trains the sample models, and writes each one's folder: the model, five requests and their answers.

``python sample_models/build.py [--check] [NAME ...]`` needs ``requirements/convert.txt``, onnxruntime and,
for ``digits-convnet`` alone, torch. The project's converters make the graphs of what is trained, and prove them;
what becomes of a graph here is checked against the library that trained it, over its whole data set, before a
file is written. The answers come from onnxruntime itself, so that they witness for the server's codecs and not
for themselves.

Trained models differ in their last bits from machine to machine, so ``--check`` builds into a temporary
folder and compares what the models answer, not their bytes.
"""

import argparse
import csv
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

# onnxruntime reads it when it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx
import onnxruntime
import pandas as pd
from onnx import TensorProto, helper, numpy_helper
from sklearn import datasets
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Started as a script, this file's folder is on the path, and the project's is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from converters import sklearn

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = dict[str, Array]

FOLDER = Path(__file__).parent
SEED = 20240607
ROWS = 5
OPSET = 18
RTOL, ATOL = 1e-4, 1e-5


@dataclass(frozen=True, slots=True)
class Sample:
    """A trained model with what is known of it.

    Attributes:
        title: What the model is, in a few words.
        data: Where its training data come from.
        licence: The licence of those data.
        model: The graph; dimension 0 of every tensor counts rows.
        inputs: Arrays by input name, in the graph's order, for M rows.
        expected: What the training library answers to those rows: arrays by output name, a ZipMap's as
            its values ``[M, K]``. Outputs that the library does not have are left out.
        rows: The five of the M rows that become the requests.
    """

    title: str
    data: str
    licence: str
    model: onnx.ModelProto
    inputs: Arrays
    expected: Arrays
    rows: Sequence[int]


# --- The models -----------------------------------------------------------------------------------


def wine_classifier() -> Sample:
    """One input a column, and ZipMap: the converters leave that out, but much of what is served has it."""
    table = datasets.load_wine()
    columns = [name.replace("/", "_") for name in table.feature_names]
    values = table.data.astype(np.float32)
    # A tight tolerance, so that the solver stops at the same weights on every machine.
    pipeline = make_pipeline(
        ColumnTransformer([("scale", StandardScaler(), columns)]),
        LogisticRegression(tol=1e-8, max_iter=1000),
    )
    frame = pd.DataFrame(values.astype(np.float64), columns=columns)
    pipeline.fit(frame, table.target)
    model = sklearn.convert(pipeline, frame, precision="32").model
    _zip_map(model, "probabilities", sorted(set(table.target.tolist())))
    return Sample(
        title="Cultivar of a wine from 13 chemical measurements: StandardScaler, LogisticRegression, ZipMap",
        data="sklearn.datasets.load_wine, UCI Wine, https://doi.org/10.24432/C5PC7J",
        licence="CC BY 4.0",
        model=model,
        inputs={name: values[:, [index]] for index, name in enumerate(columns)},
        expected=_classification(pipeline, frame),
        rows=_spread(table.target),
    )


def iris_classifier() -> Sample:
    """The plainest case: one matrix in, a label and a matrix of probabilities out."""
    table = datasets.load_iris()
    values = table.data.astype(np.float32)
    # A power of two, so that the trees' shares of a probability add up to 1 in float32.
    forest = RandomForestClassifier(n_estimators=16, max_depth=3, random_state=SEED)
    forest.fit(values, table.target)
    return Sample(
        title="Species of an iris from 4 lengths in cm: RandomForestClassifier of 16 trees",
        data="sklearn.datasets.load_iris, UCI Iris (R. A. Fisher, 1936), https://doi.org/10.24432/C56C76",
        licence="CC BY 4.0",
        model=sklearn.convert(forest, values).model,
        inputs={"features": values},
        expected=_classification(forest, values),
        rows=_spread(table.target),
    )


def diabetes_regressor() -> Sample:
    """A regression: one output of one column."""
    table = datasets.load_diabetes(scaled=False)
    values = table.data.astype(np.float32)
    trees = GradientBoostingRegressor(n_estimators=60, max_depth=3, random_state=SEED)
    trees.fit(values, table.target)
    model = sklearn.convert(trees, values).model
    _rename(model, {"prediction": "progression"})
    return Sample(
        title="Progression of diabetes in a year from 10 measurements: GradientBoostingRegressor of 60 trees",
        data="sklearn.datasets.load_diabetes (scaled=False), Efron, Hastie, Johnstone and Tibshirani (2004), "
        "https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html",
        licence="none stated by the source; distributed with scikit-learn",
        model=model,
        inputs={"features": values},
        expected={"progression": trees.predict(values)[:, None]},
        rows=_spread(table.target),
    )


def digits_convnet() -> Sample:
    """A network with an input of rank 4, as PyTorch exports it."""
    import torch  # noqa: PLC0415 - the other models are built without torch

    from converters import torch as torch_converter  # noqa: PLC0415

    table = datasets.load_digits()
    images = table.images[:, None].astype(np.float32)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    # The first layer takes the pixels' range, 0 to 16, so that nobody has to scale them.
    layers = (
        torch.nn.BatchNorm2d(1),
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 10),
    )
    # Trained in double precision: rounding differs from machine to machine, and training multiplies it.
    network = torch.nn.Sequential(*layers).double()
    pixels, classes = torch.from_numpy(images).double(), torch.from_numpy(table.target).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(pixels), classes).backward()
        optimizer.step()
    network = network.float().eval()
    model = torch_converter.convert(network, images[:16]).model
    _rename(model, {"input": "image", "output": "logits"})
    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()
    return Sample(
        title="Handwritten digit in an image of 8 x 8 pixels from 0 to 16: two convolutions, PyTorch",
        data="sklearn.datasets.load_digits, UCI Optical Recognition of Handwritten Digits, "
        "https://doi.org/10.24432/C50P49",
        licence="CC BY 4.0",
        model=model,
        inputs={"image": images},
        expected={"logits": logits},
        rows=_spread(table.target),
    )


def text_classifier() -> Sample:
    """Strings in and strings out."""
    corpus = [
        (template.format(item), label)
        for label, templates in TEMPLATES.items()
        for template, item in itertools.product(templates, ITEMS)
    ]
    texts, labels = zip(*corpus, strict=True)
    vectorizer = TfidfVectorizer(token_pattern="[a-z]{2,}")  # noqa: S106 - tokens of text, no password
    pipeline = make_pipeline(vectorizer, LogisticRegression(C=10, tol=1e-8, max_iter=1000))
    pipeline.fit(texts, labels)
    model = sklearn.convert(pipeline, list(texts), precision="32").model
    values = np.array([*texts, *MESSAGES])
    return Sample(
        title="Question, complaint or praise in a message to a shop: TfidfVectorizer, LogisticRegression",
        data="sentences made from the templates in sample_models/build.py",
        licence="Apache-2.0, as the project",
        model=model,
        inputs={"text": values[:, None]},
        expected=_classification(pipeline, values),
        rows=range(len(texts), len(values)),
    )


TEMPLATES = {
    "complaint": (
        "the {} arrived broken",
        "my {} stopped working after one week",
        "i want a refund for the {}",
        "the {} was late and nobody answers my messages",
        "a part of the {} is missing",
        "the {} leaks and smells bad",
        "very disappointed with this {}",
        "the {} you sent is the wrong one",
    ),
    "praise": (
        "i love the {}",
        "the {} is perfect, thank you",
        "great {} and fast delivery",
        "best {} we ever bought",
        "this {} is very comfortable and looks beautiful",
        "the {} works great, highly recommended",
        "so happy with my new {}",
        "excellent quality, the {} is worth every cent",
    ),
    "question": (
        "does the {} come in blue?",
        "how long is the warranty of the {}?",
        "can i return the {} after two weeks?",
        "when will the {} be in stock again?",
        "is the {} safe for children?",
        "how do i clean the {}?",
        "what is the price of the {}?",
        "where is the {} made?",
    ),
}
ITEMS = ("lamp", "kettle", "chair", "desk", "blender", "backpack", "mattress", "bicycle", "teapot", "rug")
# None of these is in the corpus; the commas and quotation marks are there for CSV.
MESSAGES = (
    "when can i return the garden chair?",
    "the kettle leaks, and nobody answers",
    "great desk, so happy with it",
    'the "new" blender arrived broken, i want a refund',
    "does the lamp come with a warranty?",
)


def two_inputs() -> Sample:
    """Two inputs that differ in type and rank, and two outputs that do."""
    users, items, size = 50, 12, 8
    rng = np.random.default_rng(SEED)
    tastes = rng.normal(size=(users, size)).astype(np.float32)
    mix = rng.normal(size=(size, size)).astype(np.float32)
    catalogue = rng.normal(size=(size, items)).astype(np.float32)
    user = rng.integers(users, size=200)
    history = rng.uniform(size=(200, size)).astype(np.float32).round(3)
    constants = {
        "tastes": tastes,
        "mix": mix,
        "catalogue": catalogue,
        "three": np.array([3]),
        "axis": np.array([1]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["tastes", "user"], ["taste"]),
            helper.make_node("MatMul", ["history", "mix"], ["habit"]),
            helper.make_node("Add", ["taste", "habit"], ["profile"]),
            helper.make_node("MatMul", ["profile", "catalogue"], ["affinity"]),
            helper.make_node("TopK", ["affinity", "three"], ["best", "top"]),
            helper.make_node("ReduceMean", ["best", "axis"], ["mean"], keepdims=0),
            helper.make_node("Sigmoid", ["mean"], ["score"]),
        ],
        "two-inputs",
        [
            helper.make_tensor_value_info("user", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("history", TensorProto.FLOAT, ["N", size]),
        ],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("top", TensorProto.INT64, ["N", 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    affinity = (tastes[user] + history @ mix) @ catalogue
    top = np.argsort(-affinity, axis=1, kind="stable")[:, :3]
    best = np.take_along_axis(affinity, top, axis=1)
    return Sample(
        title="Three items for a user and a history of 8 numbers, and how well they fit: embedding, TopK",
        data="none: the weights are random numbers",
        licence="Apache-2.0, as the project",
        model=helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8),
        inputs={"user": user, "history": history},
        expected={"score": 1 / (1 + np.exp(-best.mean(axis=1))), "top": top},
        rows=range(ROWS),
    )


BUILDERS: dict[str, Callable[[], Sample]] = {
    "wine-classifier": wine_classifier,
    "iris-classifier": iris_classifier,
    "diabetes-regressor": diabetes_regressor,
    "digits-convnet": digits_convnet,
    "text-classifier": text_classifier,
    "two-inputs": two_inputs,
}


def _classification(classifier: Any, values: Array) -> Arrays:
    return {"label": classifier.predict(values), "probabilities": classifier.predict_proba(values)}


def _spread(target: Array) -> list[int]:
    """Five rows at equal steps through the sorted targets: different classes, or a low to a high value."""
    steps = np.linspace(0, len(target) - 1, ROWS).astype(int)
    return [int(row) for row in np.argsort(target, kind="stable")[steps]]


def _zip_map(model: onnx.ModelProto, name: str, classes: Sequence[int]) -> None:
    """Makes a matrix output [N, classes] a sequence of N maps from class to value."""
    matrix = f"{name}_matrix"
    _rename(model, {name: matrix})
    model.graph.node.append(
        helper.make_node("ZipMap", [matrix], [name], domain="ai.onnx.ml", classlabels_int64s=classes)
    )
    maps = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    for output in model.graph.output:
        if output.name == matrix:
            output.CopyFrom(helper.make_value_info(name, helper.make_sequence_type_proto(maps)))
    if not any(opset.domain == "ai.onnx.ml" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Renames inputs and outputs; a value inside the graph that has such a name already gets an underscore."""
    changes = {new: f"{new}_" for new in names.values()} | names
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [changes.get(name, name) for name in values]
    for value in (*model.graph.input, *model.graph.output):
        value.name = changes.get(value.name, value.name)


# --- What a folder holds ----------------------------------------------------------------------------


def build(name: str, folder: Path) -> None:
    """Trains one model and writes its folder, made if missing; files of other names are left alone.

    Raises:
        ValueError: onnxruntime does not answer what the training library does.
    """
    sample = BUILDERS[name]()
    _describe(sample, name)
    onnx.checker.check_model(sample.model, full_check=True)
    model = sample.model.SerializeToString(deterministic=True)
    everything = answer(model, sample.inputs)
    for output, expected in sample.expected.items():
        if not _same(everything[output], expected):
            raise ValueError(f"{name}: {output} differs from what the training library answers")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    request = {name: values[sample.rows] for name, values in sample.inputs.items()}
    _write_arrays(folder / "request", request, single=len(request) == 1)
    _write_records(folder / "request", "instances", request, [_record(request, row) for row in range(ROWS)])
    response = answer(model, request)
    _write_arrays(folder / "response", response, single=len(response) == 1)
    _write_records(
        folder / "response", "predictions", response, [_prediction(response, row) for row in range(ROWS)]
    )


def answer(model: bytes, feed: Mapping[str, Array]) -> Arrays:
    """What onnxruntime answers: arrays by output name, in the graph's order.

    Strings are of NumPy's fixed width, ``<U``, in the feed and in the answer. The maps of a ZipMap
    become ``<name>``, their values ``[N, K]``, and ``<name>.keys``, their keys ``[K]``.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    arrays: Arrays = {}
    for output, value in zip(session.get_outputs(), session.run(None, dict(feed)), strict=True):
        if isinstance(value, list):
            arrays[output.name] = np.array([list(row.values()) for row in value], np.float32)
            arrays[f"{output.name}.keys"] = np.array(list(value[0]))
        else:
            # Arrays of objects could be saved with pickle alone.
            arrays[output.name] = value.astype(str) if value.dtype == object else value
    return arrays


def _describe(sample: Sample, name: str) -> None:
    """Names the rows' dimension and the origin, and drops what an exporter tells of its own machine."""
    model, graph = sample.model, sample.model.graph
    for value in (*graph.input, *graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    # skl2onnx may import a domain twice; the highest version is the one that counts:
    # https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, ModelProto.opset_import
    imports = sorted(model.opset_import, key=lambda opset: opset.version)
    opsets = {opset.domain: opset.version for opset in imports}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    graph.name = name
    model.producer_name = "onnx-serve sample_models"
    model.producer_version = "1"
    model.doc_string = sample.title
    notes = {"title": sample.title, "data": sample.data, "licence": sample.licence, "seed": str(SEED)}
    helper.set_model_props(model, notes)


def _write_arrays(stem: Path, arrays: Arrays, *, single: bool) -> None:
    """The NumPy formats; ``single``: there is but one input or output."""
    np.savez(stem.with_suffix(".npz"), allow_pickle=False, **arrays)
    if single:
        [array] = arrays.values()
        np.save(stem.with_suffix(".npy"), array, allow_pickle=False)


def _write_records(stem: Path, key: str, arrays: Arrays, records: Sequence[Any]) -> None:
    """The text formats: one record a line, and in JSON one document of them all."""
    stem.with_suffix(".json").write_text(f"{_json({key: records})}\n")
    stem.with_suffix(".jsonl").write_text("".join(f"{_json(record)}\n" for record in records))
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        values = _values(arrays)
        for row in range(ROWS):
            writer.writerow(_plain(cell) for array in values.values() for cell in np.ravel(array[row]))


def _record(request: Arrays, row: int) -> Any:
    """A request's record: by input name if there are several; a single value stands without brackets."""
    record = {
        name: _plain(array[row].ravel()[0] if array[row].size == 1 else array[row])
        for name, array in request.items()
    }
    return _only(record)


def _prediction(response: Arrays, row: int) -> Any:
    """A response's record: by output name if there are several, a ZipMap's as an object."""
    record = {}
    for name, array in _values(response).items():
        record[name] = _plain(array[row])
        if keys := _plain(response.get(f"{name}.keys", np.array(()))):
            record[name] = {str(key): value for key, value in zip(keys, record[name], strict=True)}
    return _only(record)


def _values(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.endswith(".keys")}


def _only(record: dict[str, Any]) -> Any:
    return next(iter(record.values())) if len(record) == 1 else record


def _plain(value: Any) -> Any:
    """Python's own values; a float32 becomes the float64 that prints as the float32's shortest decimal."""
    if np.ndim(value):
        return [_plain(item) for item in value]
    return float(str(value)) if isinstance(value, np.floating) else value.item()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


# --- The command ------------------------------------------------------------------------------------


def differences(fresh: Path, committed: Path) -> list[str]:
    """Where a newly built folder and the committed one differ, one line each."""
    new_names, old_names = ({path.name for path in folder.glob("*")} for folder in (fresh, committed))
    if new_names != old_names:
        return [f"files: {', '.join(sorted(new_names ^ old_names))}"]
    found = []
    for name in ("request.npz", "response.npz"):
        with np.load(fresh / name) as new, np.load(committed / name) as old:
            if new.files != old.files:
                found.append(f"{name}: {', '.join(new.files)} against {', '.join(old.files)}")
            else:
                found += [f"{name}: {key}" for key in new.files if not _same(new[key], old[key])]
    if _interface(fresh / "model.onnx") != _interface(committed / "model.onnx"):
        found.append("model.onnx: inputs or outputs")
    return found


def _same(new: Array, old: Array) -> bool:
    if new.shape != old.shape:
        return False
    if new.dtype.kind == "f":
        return bool(np.allclose(new, old, rtol=RTOL, atol=ATOL))
    return bool(np.array_equal(new, old))


def _interface(path: Path) -> list[bytes]:
    graph = onnx.load(path).graph
    return [value.SerializeToString(deterministic=True) for value in (*graph.input, *graph.output)]


def check(names: Iterable[str]) -> bool:
    """Builds the models anew in a temporary folder; True if they answer as the committed ones do."""
    passed = True
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            fresh = Path(temporary) / name
            build(name, fresh)
            found = differences(fresh, FOLDER / name)
            passed = passed and not found
            print(f"{name}: {'differs in ' + '; '.join(found) if found else 'same'}")
    return passed


def main() -> int:
    """Builds or checks the models named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description="Build the sample models.")
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed folders; write nothing"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BUILDERS)}; default: all")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BUILDERS]
    if unknown:
        parser.error(f"unknown model {', '.join(unknown)}; expected {', '.join(BUILDERS)}")
    names = arguments.names or list(BUILDERS)
    if arguments.check:
        return 0 if check(names) else 1
    for name in names:
        build(name, FOLDER / name)
        size = sum(path.stat().st_size for path in (FOLDER / name).iterdir())
        print(f"{name}: {size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
