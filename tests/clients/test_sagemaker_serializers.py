"""Every serializer and deserializer of the SageMaker Python SDK v2, through its ``Predictor``, boto3 and a server.

The classes are those of https://sagemaker.readthedocs.io/en/v2/api/inference/serializers.html and
https://sagemaker.readthedocs.io/en/v2/api/inference/deserializers.html. What they should bring back is what
onnxruntime answers in this process.
"""

import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from clients.conftest import Serve
from clients.sagemaker_endpoint import Endpoint
from serving import SAMPLES

CONFIG = Path(__file__).with_name("sagemaker_config.yaml")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    os.environ["SAGEMAKER_ADMIN_CONFIG_OVERRIDE"] = str(CONFIG)
    os.environ["SAGEMAKER_USER_CONFIG_OVERRIDE"] = str(CONFIG)
    pytest.importorskip("sagemaker", reason="the SDK is in the clients' environment: make test-clients")
    boto3: Any = pytest.importorskip("boto3")
    pd: Any = pytest.importorskip("pandas")
    sparse: Any = pytest.importorskip("scipy.sparse")
    from PIL import Image
    from sagemaker import deserializers, serializers
    from sagemaker.predictor import Predictor
    from sagemaker.session import Session

# The SDK and what it is made of warn of their own business.
pytestmark = pytest.mark.filterwarnings("ignore")

Array: TypeAlias = npt.NDArray[Any]
Predict: TypeAlias = Callable[..., Any]

IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.4, 2.9, 4.3, 1.3], [5.9, 3.0, 4.2, 1.5]])
DIABETES = np.loadtxt(SAMPLES / "diabetes-regressor" / "request.csv", delimiter=",")
DIGITS = np.load(SAMPLES / "digits-convnet" / "request.npy")
TEXTS = ["when can i return the garden chair?", 'a "great" desk, so happy with it', "größer als gedacht 🪑"]


def run(model: str, **inputs: Array) -> list[Any]:
    """The outputs of a sample model, from onnxruntime in this process."""
    session = ort.InferenceSession(SAMPLES / model / "model.onnx")
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(string)": np.object_}
    feed: dict[str, Array] = {
        spec.name: inputs[spec.name].astype(types[spec.type]) for spec in session.get_inputs()
    }
    outputs: list[Any] = session.run(None, feed)
    return outputs


@pytest.fixture(scope="module")
def session(endpoint: Endpoint) -> Any:
    """The SDK's session, whose client knows our service and no other."""
    client = boto3.client("sagemaker-runtime", endpoint_url=endpoint.url)
    return Session(boto3.Session(), sagemaker_client=object(), sagemaker_runtime_client=client)


@pytest.fixture
def predict(serve: Serve, endpoint: Endpoint, session: Any) -> Predict:
    """Has a sample model predict: ``predict(model, data, serializer, deserializer)``."""

    def call(model: str, data: Any, serializer: Any, deserializer: Any = None) -> Any:
        endpoint.names[model] = serve(SAMPLES / model).url
        deserializer = deserializer or deserializers.JSONDeserializer()
        return Predictor(model, session, serializer=serializer, deserializer=deserializer).predict(data)

    return call


def labels(answer: dict[str, Any]) -> list[Any]:
    return [prediction["label"] for prediction in answer["predictions"]]


def check_iris(answer: dict[str, Any], rows: Array = IRIS) -> None:
    expected_labels, expected = run("iris-classifier", features=rows)
    assert labels(answer) == expected_labels.tolist()
    got = [prediction["probabilities"] for prediction in answer["predictions"]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def frame(*, missing: bool = False) -> Any:
    table = pd.DataFrame(IRIS, columns=list("abcd"))
    if missing:
        table.loc[1, "c"] = np.nan
    return table


WITH_NAN = np.where(np.arange(12).reshape(3, 4) == 6, np.nan, IRIS)

# What each serializer is given, and the rows that it means.
NUMBERS: dict[str, tuple[Any, Any, Array]] = {
    "CSV of an array": (serializers.CSVSerializer(), IRIS, IRIS),
    "CSV of lists": (serializers.CSVSerializer(), IRIS.tolist(), IRIS),
    "CSV of one list": (serializers.CSVSerializer(), IRIS[0].tolist(), IRIS[:1]),
    "CSV of a data frame": (serializers.CSVSerializer(), frame(), IRIS),
    "CSV of a data frame with a missing value": (serializers.CSVSerializer(), frame(missing=True), WITH_NAN),
    "CSV of a string": (serializers.CSVSerializer(), "5.1,3.5,1.4,0.2", IRIS[:1]),
    "CSV of a file": (serializers.CSVSerializer(), io.StringIO("5.1,3.5,1.4,0.2\n"), IRIS[:1]),
    "CSV with a parameter": (serializers.CSVSerializer("text/csv; charset=utf-8"), IRIS, IRIS),
    "JSON of an array": (serializers.JSONSerializer(), IRIS, IRIS),
    "JSON of lists with NaN": (serializers.JSONSerializer(), WITH_NAN.tolist(), WITH_NAN),
    "JSON of instances": (serializers.JSONSerializer(), {"instances": IRIS}, IRIS),
    "JSON of features": (
        serializers.JSONSerializer(),
        {"instances": [{"features": row.tolist()} for row in IRIS]},
        IRIS,
    ),
    "JSON lines of lists": (serializers.JSONLinesSerializer(), IRIS.tolist(), IRIS),
    "JSON lines of objects": (
        serializers.JSONLinesSerializer(),
        ({"features": row.tolist()} for row in IRIS),
        IRIS,
    ),
    "JSON lines of a string": (serializers.JSONLinesSerializer(), "[5.1,3.5,1.4,0.2]", IRIS[:1]),
    "NPY of lists of floats": (serializers.NumpySerializer(), IRIS.tolist(), IRIS),
    "NPY of lists of integers": (serializers.NumpySerializer(), [[5, 3, 1, 0]], np.array([[5, 3, 1, 0]])),
    "NPY of float32": (serializers.NumpySerializer(dtype="float32"), IRIS.tolist(), IRIS),
    "NPY in Fortran's order": (serializers.NumpySerializer(), np.asfortranarray(IRIS), IRIS),
    "NPY of a tuple": (serializers.NumpySerializer(), tuple(map(tuple, IRIS)), IRIS),
    "records of float32": (serializers.RecordSerializer(), IRIS.astype(np.float32), IRIS),
    "records of float64": (serializers.RecordSerializer(), IRIS, IRIS),
    "records of int64": (serializers.RecordSerializer(), np.array([[5, 3, 1, 0]]), np.array([[5, 3, 1, 0]])),
    "record of a vector": (serializers.RecordSerializer(), IRIS[0], IRIS[:1]),
    "LIBSVM from 0": (
        serializers.LibSVMSerializer(),
        "1 0:5.1 1:3.5 3:0.2\n0 2:4.25\n",
        np.array([[5.1, 3.5, 0, 0.2], [0, 0, 4.25, 0]]),
    ),
    "LIBSVM from 1": (
        serializers.LibSVMSerializer("text/libsvm; indexing_mode=1"),
        io.StringIO("1 1:5.1 2:3.5 4:0.2"),
        np.array([[5.1, 3.5, 0, 0.2]]),
    ),
    "raw bytes": (serializers.IdentitySerializer(), IRIS.astype("<f4").tobytes(), IRIS),
    "raw bytes as data": (
        serializers.DataSerializer("application/octet-stream"),
        IRIS.astype("<f4").tobytes(),
        IRIS,
    ),
    "a string": (serializers.StringSerializer("text/csv"), "5.1,3.5,1.4,0.2", IRIS[:1]),
}


@pytest.mark.parametrize(("serializer", "data", "rows"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_reach_the_model(predict: Predict, serializer: Any, data: Any, rows: Array) -> None:
    check_iris(predict("iris-classifier", data, serializer), rows)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "dia"])
def test_sparse_matrices(predict: Predict, kind: str) -> None:
    """``scipy.sparse.save_npz`` is no bag of arrays by input name; the answer is columns, as to any NPZ."""
    rows = np.where(np.arange(12).reshape(3, 4) % 3 == 0, 0, IRIS)
    matrix = sparse.csr_array(rows).asformat(kind)
    answer = predict("iris-classifier", matrix, serializers.SparseMatrixSerializer())
    expected_labels, expected = run("iris-classifier", features=rows)

    assert answer["outputs"]["label"] == expected_labels.tolist()
    np.testing.assert_allclose(answer["outputs"]["probabilities"], expected, rtol=1e-6)


def test_columns_of_json(predict: Predict) -> None:
    """A dictionary of arrays is what TensorFlow Serving calls the columnar form."""
    users = np.array([6, 49])
    history = np.linspace(0, 1, 16).reshape(2, 8)
    answer = predict(
        "two-inputs", {"inputs": {"user": users.tolist(), "history": history.tolist()}},
        serializers.JSONSerializer(),
    )  # fmt: skip
    score, top = run("two-inputs", user=users, history=history)

    np.testing.assert_allclose(answer["outputs"]["score"], score, rtol=1e-6)
    assert answer["outputs"]["top"] == top.tolist()


@pytest.mark.parametrize(
    ("serializer", "data"),
    [
        (serializers.CSVSerializer(), [[text] for text in TEXTS]),
        (serializers.JSONSerializer(), TEXTS),
        (serializers.JSONLinesSerializer(), TEXTS),
        (serializers.NumpySerializer(), [[text] for text in TEXTS]),
    ],
    ids=["CSV", "JSON", "JSON lines", "NPY"],
)
def test_texts(predict: Predict, serializer: Any, data: Any) -> None:
    """Quotes, commas and letters beyond ASCII survive."""
    expected, _ = run("text-classifier", text=np.array(TEXTS)[:, None])

    assert labels(predict("text-classifier", data, serializer)) == expected.tolist()


@pytest.mark.parametrize(
    "serializer", [serializers.CSVSerializer(), serializers.JSONSerializer(), serializers.NumpySerializer()],
    ids=["CSV, which flattens each row", "JSON", "NPY"],
)  # fmt: skip
def test_rows_of_many_dimensions(predict: Predict, serializer: Any) -> None:
    [expected] = run("digits-convnet", image=DIGITS)
    answer = predict("digits-convnet", DIGITS, serializer)

    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-5, atol=1e-5)


def test_an_image_file(predict: Predict, tmp_path: Path) -> None:
    """``DataSerializer`` reads the file; its type has to be said, because the serializer does not look."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    answer = predict("digits-convnet", str(tmp_path / "digit.png"), serializers.DataSerializer("image/png"))
    [expected] = run("digits-convnet", image=pixels[None, None] / 255)

    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-5, atol=1e-5)


class StandIn(ModuleType):
    """The two names that the SDK takes from PyTorch, whose wheel is too large for a test of three lines."""

    class Tensor:
        """An array that is asked for itself as PyTorch's tensors are."""

        def __init__(self, array: Array) -> None:
            self.array = array

        def detach(self) -> "StandIn.Tensor":
            return self

        def numpy(self) -> Array:
            return self.array

    from_numpy = Tensor


def test_torch_tensors(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    """``tensor/pt`` is an NPY file both ways."""
    torch = StandIn("torch")
    monkeypatch.setitem(sys.modules, "torch", torch)
    answer = predict(
        "diabetes-regressor",
        torch.Tensor(DIABETES.astype(np.float32)),
        serializers.TorchTensorSerializer(),
        deserializers.TorchTensorDeserializer(),
    )

    assert isinstance(answer, StandIn.Tensor)
    np.testing.assert_allclose(answer.numpy(), run("diabetes-regressor", features=DIABETES)[0], rtol=1e-6)


REFUSED: dict[str, tuple[Any, Any, int, str]] = {
    "pickled objects": (serializers.NumpySerializer(), np.array([[1, "a", None, 2]], object), 400, "object"),
    "tuples, which CSV mangles": (serializers.CSVSerializer(), ((1, 2), (3, 4)), 400, "expected 4 columns, got 2"),
    "NPY of the wrong rank": (serializers.NumpySerializer(), [5.1, 3.5, 1.4, 0.2], 400, "expected FLOAT[N, 4], got"),
    "text/plain": (serializers.StringSerializer(), "5.1,3.5,1.4,0.2", 415, "text/csv"),
    "no type at all": (serializers.DataSerializer(), b"\0" * 16, 415, "application/octet-stream"),
    "LIBSVM from 1, not said": (serializers.LibSVMSerializer(), "0 1:1 4:2", 400, "indexing_mode=1"),
}  # fmt: skip


@pytest.mark.parametrize(("serializer", "data", "status", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_told(
    predict: Predict, serializer: Any, data: Any, status: int, message: str
) -> None:
    with pytest.raises(Exception, match="ModelError") as caught:
        predict("iris-classifier", data, serializer)

    assert caught.value.response["OriginalStatusCode"] == status  # type: ignore[attr-defined]  # botocore's
    assert message in caught.value.response["OriginalMessage"]  # type: ignore[attr-defined]  # botocore's


class TestDeserializers:
    """One number a row back, in every form that the SDK reads."""

    @pytest.fixture
    def expected(self) -> Array:
        answer: Array = run("diabetes-regressor", features=DIABETES)[0]
        return answer

    @pytest.fixture
    def read(self, predict: Predict) -> Callable[[Any], Any]:
        return lambda deserializer: predict(
            "diabetes-regressor", DIABETES, serializers.CSVSerializer(), deserializer
        )

    def test_bytes(self, read: Callable[[Any], Any], expected: Array) -> None:
        """``*/*``: JSON, which is ours to choose."""
        answer = json.loads(read(deserializers.BytesDeserializer()))

        np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-6)

    def test_string(self, read: Callable[[Any], Any], expected: Array) -> None:
        answer = json.loads(read(deserializers.StringDeserializer()))

        np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-6)

    def test_stream(self, read: Callable[[Any], Any], expected: Array) -> None:
        stream, content_type = read(deserializers.StreamDeserializer(accept="text/csv"))
        with stream:
            answer = np.loadtxt(io.StringIO(stream.read().decode()), delimiter=",", ndmin=2)

        assert content_type == "text/csv"
        np.testing.assert_allclose(answer, expected, rtol=1e-6)

    def test_csv(self, read: Callable[[Any], Any], expected: Array) -> None:
        answer = read(deserializers.CSVDeserializer())

        np.testing.assert_allclose(np.array(answer, np.float32), expected, rtol=1e-6)

    def test_json(self, read: Callable[[Any], Any], expected: Array) -> None:
        answer = read(deserializers.JSONDeserializer())

        np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-6)

    def test_json_lines(self, read: Callable[[Any], Any], expected: Array) -> None:
        """No blank line, which would be no JSON."""
        answer = read(deserializers.JSONLinesDeserializer())

        np.testing.assert_allclose(answer, expected, rtol=1e-6)

    @pytest.mark.parametrize("accept", ["application/x-npy", "text/csv"])
    def test_numpy(self, read: Callable[[Any], Any], expected: Array, accept: str) -> None:
        """It compares the media type to the letter: a ``charset`` would be an error."""
        answer = read(deserializers.NumpyDeserializer(accept=accept))

        np.testing.assert_allclose(answer.reshape(expected.shape), expected, rtol=1e-6)

    def test_numpy_of_json(self, read: Callable[[Any], Any], expected: Array) -> None:
        """An object of JSON becomes an array of no dimension that holds it."""
        answer = read(deserializers.NumpyDeserializer(accept="application/json"))

        np.testing.assert_allclose(answer.item()["predictions"], expected, rtol=1e-6)

    def test_numpy_of_several_outputs(self, predict: Predict) -> None:
        answer = predict(
            "iris-classifier", IRIS, serializers.NumpySerializer(),
            deserializers.NumpyDeserializer(accept="application/x-npz"),
        )  # fmt: skip
        expected_labels, expected = run("iris-classifier", features=IRIS)

        assert answer["label"].tolist() == expected_labels.tolist()
        np.testing.assert_array_equal(answer["probabilities"], expected)

    def test_pandas(self, read: Callable[[Any], Any], expected: Array) -> None:
        """It asks for CSV before JSON, and takes the first row of it for names: that row is in the columns."""
        answer = read(deserializers.PandasDeserializer())

        got = [float(name) for name in answer.columns] + answer.iloc[:, 0].tolist()
        np.testing.assert_allclose(got, expected.reshape(-1), rtol=1e-6)

    def test_pandas_of_json(self, read: Callable[[Any], Any], expected: Array) -> None:
        """The way to have every row."""
        answer = read(deserializers.PandasDeserializer(accept="application/json"))

        assert list(answer.columns) == ["predictions"]
        np.testing.assert_allclose(answer["predictions"].tolist(), expected, rtol=1e-6)

    def test_records(self, read: Callable[[Any], Any], expected: Array) -> None:
        answer = read(deserializers.RecordDeserializer())

        got = [list(record.label["progression"].float32_tensor.values) for record in answer]
        np.testing.assert_array_equal(np.array(got, np.float32), expected)


def test_the_predictors_own_defaults(serve: Serve, endpoint: Endpoint, session: Any) -> None:
    """Bytes out and bytes back, ``application/octet-stream`` and ``*/*``: an answer in JSON."""
    endpoint.names["plain"] = serve(SAMPLES / "iris-classifier").url
    answer = Predictor("plain", session).predict(IRIS.astype("<f4").tobytes())

    assert endpoint.seen["Content-Type"] == "application/octet-stream"
    assert endpoint.seen["Accept"] == "*/*"
    check_iris(json.loads(answer))


def test_every_class_of_the_sdk_is_here() -> None:
    """A new release's serializer would be missing above."""
    source = Path(__file__).read_text()
    bases = {"BaseSerializer", "SimpleBaseSerializer", "BaseDeserializer", "SimpleBaseDeserializer"}
    classes = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module, suffix in ((serializers, "Serializer"), (deserializers, "Deserializer"))
        for name, value in vars(module).items()
        if name.endswith(suffix) and isinstance(value, type) and name not in bases
    }

    assert len(classes) >= 20
    assert [name for name in sorted(classes) if f"{name}(" not in source] == []
