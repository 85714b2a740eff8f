"""The committed sample models answer what their folders say, in every format, without the libraries that trained them."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import pytest

# onnxruntime reads it when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = dict[str, Array]
Spec: TypeAlias = tuple[str, str, list[Any]]

FOLDER = Path(__file__).parent.parent / "sample_models"
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(string)": np.str_}
WINE_COLUMNS = (
    "alcohol",
    "malic_acid",
    "ash",
    "alcalinity_of_ash",
    "magnesium",
    "total_phenols",
    "flavanoids",
    "nonflavanoid_phenols",
    "proanthocyanins",
    "color_intensity",
    "hue",
    "od280_od315_of_diluted_wines",
    "proline",
)
# The inputs and outputs of every model, as onnxruntime declares them: name, type, shape.
INTERFACES: dict[str, tuple[list[Spec], list[Spec]]] = {
    "wine-classifier": (
        [(column, "tensor(float)", ["N", 1]) for column in WINE_COLUMNS],
        [("label", "tensor(int64)", ["N"]), ("probabilities", "seq(map(int64,tensor(float)))", [])],
    ),
    "iris-classifier": (
        [("features", "tensor(float)", ["N", 4])],
        [("label", "tensor(int64)", ["N"]), ("probabilities", "tensor(float)", ["N", 3])],
    ),
    "diabetes-regressor": (
        [("features", "tensor(float)", ["N", 10])],
        [("progression", "tensor(float)", ["N", 1])],
    ),
    "digits-convnet": (
        [("image", "tensor(float)", ["N", 1, 8, 8])],
        [("logits", "tensor(float)", ["N", 10])],
    ),
    "text-classifier": (
        [("text", "tensor(string)", ["N", 1])],
        [("label", "tensor(string)", ["N"]), ("probabilities", "tensor(float)", ["N", 3])],
    ),
    "two-inputs": (
        [("user", "tensor(int64)", ["N"]), ("history", "tensor(float)", ["N", 8])],
        [("score", "tensor(float)", ["N"]), ("top", "tensor(int64)", ["N", 3])],
    ),
}
every_model = pytest.mark.parametrize("name", INTERFACES)


def load(name: str) -> Any:
    return onnxruntime.InferenceSession(FOLDER / name / "model.onnx", providers=["CPUExecutionProvider"])


def run(session: Any, feed: Arrays) -> Arrays:
    """Answers by output name; a ZipMap's as its values ``[N, K]`` and, by ``<name>.keys``, its keys."""
    arrays: Arrays = {}
    for output, value in zip(session.get_outputs(), session.run(None, feed), strict=True):
        if isinstance(value, list):
            keys = list(value[0])
            arrays[output.name] = np.array([[row[key] for key in keys] for row in value], np.float32)
            arrays[f"{output.name}.keys"] = np.array(keys)
        else:
            arrays[output.name] = value
    return arrays


def read_arrays(path: Path, names: Sequence[str] = ()) -> Arrays:
    """A NumPy file's arrays; object arrays, which need pickle, raise. ``names`` names an npy's only one."""
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        [name] = names
        return {name: loaded}
    with loaded:
        return {name: loaded[name] for name in loaded.files}


def read_records(path: Path) -> list[Any]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    [(key, records)] = json.loads(path.read_text()).items()
    assert key == {"request": "instances", "response": "predictions"}[path.stem]
    assert isinstance(records, list)
    return records


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def table_to_arrays(table: list[list[str]], inputs: Sequence[Any]) -> Arrays:
    """Columns fill the inputs in order."""
    cells = np.array(table)
    arrays: Arrays = {}
    start = 0
    for spec in inputs:
        width = int(np.prod(spec.shape[1:]))
        part = cells[:, start : start + width]
        arrays[spec.name] = part.astype(DTYPES[spec.type]).reshape(-1, *spec.shape[1:])
        start += width
    assert start == cells.shape[1]
    return arrays


def records_to_arrays(records: list[Any], inputs: Sequence[Any]) -> Arrays:
    """A record is an object by input name, or the value of the only input."""
    arrays: Arrays = {}
    for spec in inputs:
        values = [record[spec.name] if len(inputs) > 1 else record for record in records]
        arrays[spec.name] = np.array(values, DTYPES[spec.type]).reshape(-1, *spec.shape[1:])
    return arrays


def assert_close(actual: Arrays, expected: Arrays) -> None:
    """Equal names, shapes and labels; floats to within what another processor may round differently."""
    assert list(actual) == list(expected)
    for name, values in expected.items():
        assert actual[name].shape == values.shape
        if values.dtype.kind == "f":
            np.testing.assert_allclose(actual[name], values, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(actual[name], values)


def test_every_folder_is_tested() -> None:
    """A new sample model needs its line in INTERFACES."""
    assert {path.parent.name for path in FOLDER.glob("*/model.onnx")} == set(INTERFACES)


@every_model
def test_folder_holds_exactly_the_expected_files(name: str) -> None:
    """NumPy's npy has room for one array, so it is there for a single input or output only."""
    inputs, outputs = INTERFACES[name]
    expected = {"model.onnx"}
    for stem, specs in (("request", inputs), ("response", outputs)):
        suffixes = ["csv", "json", "jsonl", "npz", *(["npy"] if len(specs) == 1 else [])]
        expected |= {f"{stem}.{suffix}" for suffix in suffixes}
    assert {path.name for path in (FOLDER / name).iterdir()} == expected


@every_model
def test_inputs_and_outputs(name: str) -> None:
    """Dimension 0 is called N everywhere; a ZipMap has no shape."""
    session = load(name)
    inputs, outputs = INTERFACES[name]
    assert [(spec.name, spec.type, spec.shape) for spec in session.get_inputs()] == inputs
    assert [(spec.name, spec.type, spec.shape) for spec in session.get_outputs()] == outputs


@every_model
def test_model_file_is_portable(name: str) -> None:
    """Loads in onnxruntime 1.26 and later, holds its weights, and tells nothing of the machine that made it."""
    model = onnx.load(FOLDER / name / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    domains = [opset.domain for opset in model.opset_import]
    assert len(domains) == len(set(domains))
    versions = {opset.domain: opset.version for opset in model.opset_import}
    assert versions[""] <= 21
    assert versions.get("ai.onnx.ml", 1) <= 3
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert not any(node.metadata_props for node in model.graph.node)


@every_model
def test_model_says_where_it_comes_from(name: str) -> None:
    meta = load(name).get_modelmeta()
    assert meta.graph_name == name
    assert meta.producer_name == "onnx-serve sample_models"
    assert meta.description == meta.custom_metadata_map["title"]
    assert meta.custom_metadata_map.keys() == {"title", "data", "licence", "seed"}
    assert all(meta.custom_metadata_map.values())


def test_text_model_needs_no_installed_locale() -> None:
    """The operator's own default, en_US.UTF-8, is missing from slim images."""
    graph = onnx.load(FOLDER / "text-classifier" / "model.onnx").graph
    [normalizer] = [node for node in graph.node if node.op_type == "StringNormalizer"]
    attributes = {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in normalizer.attribute
    }
    assert attributes["locale"] == b"C.UTF-8"


@every_model
def test_onnxruntime_gives_the_committed_response(name: str) -> None:
    feed = read_arrays(FOLDER / name / "request.npz")
    assert_close(run(load(name), feed), read_arrays(FOLDER / name / "response.npz"))


@every_model
def test_rows_alone_give_the_same_response(name: str) -> None:
    """Dimension 0 counts rows that know nothing of each other."""
    session = load(name)
    feed = read_arrays(FOLDER / name / "request.npz")
    expected = read_arrays(FOLDER / name / "response.npz")
    for row in range(5):
        answer = run(session, {key: values[row : row + 1] for key, values in feed.items()})
        one = {
            key: values if key.endswith(".keys") else values[row : row + 1]
            for key, values in expected.items()
        }
        assert_close(answer, one)


@every_model
def test_every_request_format_holds_the_same_five_rows(name: str) -> None:
    """To the last bit: text gives the shortest decimal that reads back as the same float32."""
    folder = FOLDER / name
    inputs = load(name).get_inputs()
    expected = read_arrays(folder / "request.npz")
    assert {key: len(values) for key, values in expected.items()} == {spec.name: 5 for spec in inputs}
    formats = {
        "csv": table_to_arrays(read_csv(folder / "request.csv"), inputs),
        "json": records_to_arrays(read_records(folder / "request.json"), inputs),
        "jsonl": records_to_arrays(read_records(folder / "request.jsonl"), inputs),
    }
    if len(inputs) == 1:
        formats["npy"] = read_arrays(folder / "request.npy", [inputs[0].name])
    for suffix, arrays in formats.items():
        assert list(arrays) == list(expected), suffix
        for key, values in expected.items():
            assert arrays[key].dtype.kind == values.dtype.kind, (suffix, key)
            np.testing.assert_array_equal(arrays[key], values, err_msg=f"{suffix} {key}")


@every_model
def test_requests_differ_in_every_row(name: str) -> None:
    """Equal rows could not show that a server keeps their order."""
    lines = (FOLDER / name / "request.jsonl").read_text().splitlines()
    assert len(set(lines)) == len(lines) == 5


@every_model
def test_json_requests_write_a_single_value_without_brackets(name: str) -> None:
    inputs, _ = INTERFACES[name]
    single = {key for key, _, shape in inputs if all(size == 1 for size in shape[1:])}
    for record in read_records(FOLDER / name / "request.jsonl"):
        values = record if len(inputs) > 1 else {inputs[0][0]: record}
        assert {key for key, value in values.items() if not isinstance(value, list)} == single


@every_model
def test_every_response_format_holds_the_same_values(name: str) -> None:
    folder = FOLDER / name
    expected = read_arrays(folder / "response.npz")
    outputs, keys = split_keys(expected)
    predictions = [prediction(outputs, keys, row) for row in range(5)]
    assert read_records(folder / "response.json") == predictions
    assert read_records(folder / "response.jsonl") == predictions
    cells = [[str(cell) for values in outputs.values() for cell in np.ravel(values[row])] for row in range(5)]
    table = read_csv(folder / "response.csv")
    # 2.4e-05 and 2.4e-5 are the same number: text is compared as text only where it is no float.
    assert [[plain_cell(cell) for cell in line] for line in table] == [
        [plain_cell(cell) for cell in line] for line in cells
    ]
    if len(outputs) == 1:
        [values] = outputs.values()
        np.testing.assert_array_equal(read_arrays(folder / "response.npy", ["y"])["y"], values)


def split_keys(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs by name, and the keys of those that are ZipMaps by the same name."""
    outputs = {name: values for name, values in arrays.items() if not name.endswith(".keys")}
    keys = {name: arrays[f"{name}.keys"] for name in outputs if f"{name}.keys" in arrays}
    return outputs, keys


def prediction(outputs: Arrays, keys: Arrays, row: int) -> Any:
    """One row as JSON: float32 values are compared as the numbers that their shortest decimals spell."""
    record: dict[str, Any] = {}
    for name, values in outputs.items():
        value = values[row].tolist()
        if values.dtype == np.float32:
            value = np.vectorize(lambda item: float(str(np.float32(item))), otypes=[float])(value).tolist()
        record[name] = dict(zip(map(str, keys[name]), value, strict=True)) if name in keys else value
    return record if len(record) > 1 else next(iter(record.values()))


def plain_cell(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def test_zipmap_keys_are_the_classes() -> None:
    """The witness of the reader above: a literal line of the committed answers."""
    [first, *_] = read_records(FOLDER / "wine-classifier" / "response.jsonl")
    assert list(first) == ["label", "probabilities"]
    assert list(first["probabilities"]) == ["0", "1", "2"]
    assert first["label"] == 0
    assert sum(first["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "output", "classes"),
    [
        pytest.param("wine-classifier", "label", {0, 1, 2}, id="wine"),
        pytest.param("iris-classifier", "label", {0, 1, 2}, id="iris"),
        pytest.param("text-classifier", "label", {"complaint", "praise", "question"}, id="text"),
    ],
)
def test_requests_cover_every_class(name: str, output: str, classes: set[Any]) -> None:
    assert set(read_arrays(FOLDER / name / "response.npz")[output].tolist()) == classes


def test_digits_are_read_correctly() -> None:
    """Five different digits, each recognised: the images were exported with their rows and columns in place."""
    logits = read_arrays(FOLDER / "digits-convnet" / "response.npz")["logits"]
    assert logits.argmax(axis=1).tolist() == [0, 2, 4, 7, 9]


def test_text_requests_need_quoting_in_csv() -> None:
    text = (FOLDER / "text-classifier" / "request.csv").read_text()
    assert '"the kettle leaks, and nobody answers"\n' in text
    assert '"the ""new"" blender arrived broken, i want a refund"\n' in text


@every_model
def test_text_files_are_ascii_and_end_with_one_newline(name: str) -> None:
    for suffix in ("csv", "json", "jsonl"):
        for path in (FOLDER / name).glob(f"*.{suffix}"):
            data = path.read_bytes()
            assert data.isascii()
            assert data.endswith(b"\n")
            assert b"\n\n" not in data
            assert b"\r" not in data


@every_model
def test_model_is_small(name: str) -> None:
    assert (FOLDER / name / "model.onnx").stat().st_size < 300_000


def test_folders_are_small() -> None:
    """They are in every clone."""
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_500_000
