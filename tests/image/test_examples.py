"""The requests of ``examples/`` against the API models that botocore carries; no network, no account."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

botocore = pytest.importorskip("botocore", reason="boto3 is not installed: make setup")
loaders = importlib.import_module("botocore.session")
validation = importlib.import_module("botocore.validate")

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/onnx-serve:cpu"
MACHINE_IMAGE = r"\bal20?2?3?-ami-sagemaker-[a-z0-9-]+"
ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one as a script would be, with its folder on the path."""
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in ("batch_transform", "real_time_endpoint"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def problems(shape: Any, value: Any, path: str = "") -> list[str]:
    """What botocore leaves to the service: enumerations and patterns."""
    if shape.type_name == "structure":
        return [
            text
            for name, member in value.items()
            for text in problems(shape.members[name], member, f"{path}.{name}")
        ]
    if shape.type_name == "list":
        return [text for member in value for text in problems(shape.member, member, f"{path}[]")]
    if shape.type_name == "string":
        if shape.enum and value not in shape.enum:
            return [f"{path}: {value} is none of {shape.enum}"]
        pattern = shape.metadata.get("pattern")
        # Python's re knows no Unicode classes.
        if pattern and r"\p{" not in pattern and not re.fullmatch(pattern, value):
            return [f"{path}: {value} does not match {pattern}"]
    return []


def check(service: str, operation: str, request: dict[str, Any]) -> None:
    shape = loaders.Session().get_service_model(service).operation_model(operation).input_shape
    report = validation.ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    assert problems(shape, request) == []


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_batch_transform(example: Any, gpu: bool) -> None:
    module = example("batch_transform")
    job = module.job_request("job-1", "s3://bucket/in/", "s3://bucket/out/", gpu=gpu)

    check("sagemaker", "CreateModel", module.model_request("job-1", IMAGE, "s3://bucket/model.tar.gz", ROLE))
    check("sagemaker", "CreateTransformJob", job)
    assert not {"MaxConcurrentTransforms", "MaxPayloadInMB", "BatchStrategy"} & set(job)


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_real_time_endpoint(example: Any, gpu: bool) -> None:
    module = example("real_time_endpoint")

    check("sagemaker", "CreateEndpointConfig", module.endpoint_config_request("job-1", gpu=gpu))
    check("sagemaker-runtime", "InvokeEndpoint", module.invocation("job-1", b"1,2,3,4"))


def test_waiters_exist() -> None:
    """Each name that an example waits for."""
    waiters = loaders.Session().get_waiter_model("sagemaker").waiter_names
    named = {
        word.lower()
        for file in EXAMPLES.glob("*.py")
        for word in re.findall(r'get_waiter\("(\w+)"\)', file.read_text())
    }

    assert named
    assert named <= {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in waiters}


def test_documented_machine_images_exist() -> None:
    """Those of docs/sagemaker.md, written in full or as a suffix."""
    model = loaders.Session().get_service_model("sagemaker")
    known = {
        *model.shape_for("ProductionVariantInferenceAmiVersion").enum,
        # Not an enumeration: the names stand in the description.
        *re.findall(
            MACHINE_IMAGE, model.shape_for("TransformResources").members["TransformAmiVersion"].documentation
        ),
    }
    named = set(re.findall(MACHINE_IMAGE, (EXAMPLES.parent / "docs/sagemaker.md").read_text()))

    assert len(named) >= 4
    assert named <= known


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param({"TransformResources": {"InstanceType": "ml.m5.nano", "InstanceCount": 1}}, id="enumeration"),
        pytest.param({"ModelName": "no spaces"}, id="pattern"),
    ],
)  # fmt: skip
def test_the_check_finds_what_botocore_does_not(request_: dict[str, Any]) -> None:
    shape = loaders.Session().get_service_model("sagemaker").operation_model("CreateTransformJob").input_shape

    assert len(problems(shape, request_)) == 1
