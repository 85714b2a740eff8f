"""MLflow's own client of its scoring server, ``mlflow.pyfunc.scoring_server.client``, against ours.

The shapes are those of https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#inference-server-specification
"""

import json
import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from clients.conftest import Serve
from serving import SAMPLES, ServerProcess

# MLflow reports its use over the network unless told not to.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    client: Any = pytest.importorskip(
        "mlflow.pyfunc.scoring_server.client",
        reason="MLflow is in the clients' environment: make test-clients",
    )
    dump_input_data: Any = pytest.importorskip("mlflow.utils.proto_json_utils").dump_input_data

    pd: Any = pytest.importorskip("pandas")

# MLflow and what it is made of warn of their own business.
pytestmark = pytest.mark.filterwarnings("ignore")

IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.4, 2.9, 4.3, 1.3]])
DIABETES = np.loadtxt(SAMPLES / "diabetes-regressor" / "request.csv", delimiter=",")
WINE = json.loads((SAMPLES / "wine-classifier" / "request.json").read_text())["instances"]


def outputs(model: str, feed: dict[str, npt.NDArray[Any]]) -> list[Any]:
    """What onnxruntime answers in this process."""
    answers: list[Any] = ort.InferenceSession(SAMPLES / model / "model.onnx").run(None, feed)
    return answers


def scoring_client(server: ServerProcess) -> Any:
    return client.ScoringServerClient("127.0.0.1", server.port)


def test_ping(serve: Serve) -> None:
    scoring_client(serve(SAMPLES / "iris-classifier")).wait_server_ready(timeout=5)


def test_a_data_frame_by_position(serve: Serve) -> None:
    """Names that are no inputs' name nothing; the columns' order counts. The frame's index is not used."""
    frame = pd.DataFrame(DIABETES, index=[f"row {i}" for i in range(len(DIABETES))])
    answer = scoring_client(serve(SAMPLES / "diabetes-regressor")).invoke(frame)
    [expected] = outputs("diabetes-regressor", {"features": DIABETES.astype(np.float32)})

    np.testing.assert_allclose(answer.get_predictions("ndarray"), expected, rtol=1e-6)
    np.testing.assert_allclose(answer.get_predictions(), expected, rtol=1e-6)


def test_a_data_frame_by_name(serve: Serve) -> None:
    """Columns named as the inputs are found in any order."""
    frame = pd.DataFrame(WINE)
    shuffled = frame[sorted(frame.columns)]
    assert list(shuffled.columns) != list(frame.columns)
    answer = scoring_client(serve(SAMPLES / "wine-classifier")).invoke(shuffled)
    expected, _ = outputs(
        "wine-classifier",
        {name: frame[[name]].to_numpy(np.float32) for name in frame.columns},
    )

    assert answer.get_predictions()["label"].tolist() == expected.tolist()


def test_missing_values_are_nan(serve: Serve) -> None:
    rows = np.where(np.arange(8).reshape(2, 4) == 2, np.nan, IRIS)
    answer = scoring_client(serve(SAMPLES / "iris-classifier")).invoke(pd.DataFrame(rows))
    expected, _ = outputs("iris-classifier", {"features": rows.astype(np.float32)})

    assert answer.get_predictions()["label"].tolist() == expected.tolist()


def test_texts(serve: Serve) -> None:
    texts = ["when can i return the garden chair?", 'a "great" desk, so happy with it']
    answer = scoring_client(serve(SAMPLES / "text-classifier")).invoke(pd.DataFrame({"text": texts}))

    assert answer.get_predictions()["label"].tolist() == ["question", "praise"]


@pytest.mark.parametrize(
    "shape",
    [
        {"dataframe_split": {"columns": list("abcd"), "data": IRIS.tolist()}},
        {"dataframe_records": [dict(zip("abcd", row, strict=True)) for row in IRIS.tolist()]},
        {"instances": IRIS.tolist()},
    ],
    ids=["split", "records", "instances"],
)
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_every_shape_with_predictions(serve: Serve, shape: dict[str, Any], content_type: str) -> None:
    """MLflow's own response class reads the answer."""
    response = serve(SAMPLES / "iris-classifier").post(json.dumps(shape), content_type)
    answer = client.PredictionsResponse.from_json(response.text)

    assert answer.get_predictions()["label"].tolist() == [0, 1]


def test_columnar_inputs_are_answered_by_outputs(serve: Serve) -> None:
    """MLflow answers ``inputs`` by ``predictions``, TensorFlow Serving by ``outputs``; so do we.

    What its client makes of an array is read, and its answer has to be read by hand.
    """
    server = serve(SAMPLES / "iris-classifier")
    response = server.post(dump_input_data(IRIS), "application/json")

    assert json.loads(dump_input_data(IRIS)) == {"inputs": IRIS.tolist()}
    assert response.json()["outputs"]["label"] == [0, 1]
    with pytest.raises(client.MlflowException, match="'predictions' field"):
        scoring_client(server).invoke(IRIS)


def test_csv_with_a_header(serve: Serve) -> None:
    """MLflow's server reads CSV as pandas does: the first line has the names."""
    frame = pd.DataFrame(WINE)
    body = frame[sorted(frame.columns)].to_csv(index=False)
    response = serve(SAMPLES / "wine-classifier").post(body, "text/csv")
    expected, _ = outputs(
        "wine-classifier",
        {name: frame[[name]].to_numpy(np.float32) for name in frame.columns},
    )

    assert [row["label"] for row in response.json()["predictions"]] == expected.tolist()


def test_an_error_is_told_through_the_client(serve: Serve) -> None:
    frame = pd.DataFrame(IRIS[:, :3])
    with pytest.raises(Exception, match=r"error code 400.*expected 4 columns, .*got 3 columns"):
        scoring_client(serve(SAMPLES / "iris-classifier")).invoke(frame)
