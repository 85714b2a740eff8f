"""``boto3``'s ``sagemaker-runtime`` in front of a real server, with the service's part played by a small one."""

import io
import json
from typing import Any

import numpy as np
import pytest

from clients.conftest import Serve
from clients.sagemaker_endpoint import Endpoint
from serving import SAMPLES

boto3: Any = pytest.importorskip("boto3")

# boto3 and what it is made of warn of their own business.
pytestmark = pytest.mark.filterwarnings("ignore")
CSV = "5.1,3.5,1.4,0.2\n6.4,2.9,4.3,1.3\n"
ANSWER = "0,1.0,0.0,0.0\n1,0.0,0.974682,0.02531804\n"


@pytest.fixture
def runtime(serve: Serve, endpoint: Endpoint) -> Any:
    """A client that knows the endpoint ``iris``."""
    endpoint.names["iris"] = serve(SAMPLES / "iris-classifier").url
    return boto3.client("sagemaker-runtime", endpoint_url=endpoint.url)


def test_invoke_endpoint(runtime: Any) -> None:
    response = runtime.invoke_endpoint(
        EndpointName="iris", Body=CSV, ContentType="text/csv", Accept="text/csv"
    )

    assert response["ContentType"] == "text/csv"
    assert response["Body"].read().decode() == ANSWER


def test_a_file_as_body(runtime: Any) -> None:
    body = io.BytesIO()
    np.save(body, np.array([[5.1, 3.5, 1.4, 0.2]]))
    body.seek(0)
    response = runtime.invoke_endpoint(
        EndpointName="iris", Body=body, ContentType="application/x-npy", Accept="application/x-npz"
    )
    answer = np.load(io.BytesIO(response["Body"].read()))

    assert response["ContentType"] == "application/x-npz"
    assert answer["label"].tolist() == [0]


def test_a_missing_content_type_is_told(runtime: Any, endpoint: Endpoint) -> None:
    """boto3 sends no type that it was not given."""
    with pytest.raises(runtime.exceptions.ModelError, match="got none") as caught:
        runtime.invoke_endpoint(EndpointName="iris", Body=b"[[5.1, 3.5, 1.4, 0.2]]")

    assert "Content-Type" not in endpoint.seen
    assert caught.value.response["OriginalStatusCode"] == 415


def test_attributes_and_ids_travel(runtime: Any) -> None:
    response = runtime.invoke_endpoint(
        EndpointName="iris",
        Body=CSV,
        ContentType="text/csv",
        CustomAttributes="trace=77, caller=test",
        InferenceId="7f3a",
        TargetVariant="blue",
    )

    assert response["CustomAttributes"] == "trace=77, caller=test"


def test_a_response_stream_holds_the_same_bytes(runtime: Any) -> None:
    response = runtime.invoke_endpoint_with_response_stream(
        EndpointName="iris", Body=CSV * 100, ContentType="text/csv", Accept="text/csv"
    )
    parts = [event["PayloadPart"]["Bytes"] for event in response["Body"]]

    assert response["ContentType"] == "text/csv"
    assert len(parts) > 1
    assert b"".join(parts).decode() == ANSWER * 100


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "message"),
    [
        ("1,2,x,4", "text/csv", "text/csv", 400, 'expected a number, got \\"x\\" (line 1, column 3)'),
        ("1,2,3", "text/csv", "text/csv", 400, "expected 4 columns, got 3"),
        ("[[1, 2", "application/json", None, 400, "application/json"),
        ("{}", "application/xml", None, 415, "expected a Content-Type of application/json, text/csv"),
        (CSV, "text/csv", "application/xml", 406, "application/xml"),
    ],
)
def test_errors_are_model_errors_with_our_message(
    runtime: Any, body: str, content_type: str, accept: str | None, status: int, message: str
) -> None:
    """The caller sees the container's status and words."""
    options = {"Accept": accept} if accept else {}
    with pytest.raises(runtime.exceptions.ModelError) as caught:
        runtime.invoke_endpoint(EndpointName="iris", Body=body, ContentType=content_type, **options)

    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert caught.value.response["OriginalStatusCode"] == status
    assert message in caught.value.response["OriginalMessage"]
    assert message in str(caught.value)


def test_a_value_beyond_the_models_table_is_a_model_error(
    serve: Serve, endpoint: Endpoint, runtime: Any
) -> None:
    """What an operator cannot take is the caller's mistake, told without a traceback."""
    endpoint.names["two"] = serve(SAMPLES / "two-inputs").url
    with pytest.raises(runtime.exceptions.ModelError) as caught:
        runtime.invoke_endpoint(
            EndpointName="two",
            Body=json.dumps([{"user": 51, "history": [0.5] * 8}]),
            ContentType="application/json",
        )

    assert caught.value.response["OriginalStatusCode"] == 400
    assert "Traceback" not in caught.value.response["OriginalMessage"]


def test_an_unknown_endpoint_is_the_services_error(runtime: Any) -> None:
    """So that what is told as a model's error above did come from the model's container."""
    with pytest.raises(runtime.exceptions.ClientError) as caught:
        runtime.invoke_endpoint(EndpointName="none", Body=CSV, ContentType="text/csv")

    assert caught.value.response["Error"]["Code"] == "ValidationError"
