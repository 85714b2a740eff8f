"""Runs a Batch Transform job with an image of onnx-serve: one prediction a line for each line of the input.

    pip install boto3
    python examples/batch_transform.py \
        --image 123456789012.dkr.ecr.eu-west-1.amazonaws.com/onnx-serve:cpu \
        --role arn:aws:iam::123456789012:role/SageMakerRole \
        --model s3://my-bucket/iris/model.tar.gz \
        --input s3://my-bucket/iris/input/ --output s3://my-bucket/iris/output/

With ``--gpu`` the image must be a GPU variant. docs/sagemaker.md explains the choices.
"""

import argparse
import time
from typing import Any

# The machine image with NVIDIA's driver 535. The other one there is has driver 470, which cannot run CUDA 12.
GPU_AMI = "al2-ami-sagemaker-batch-gpu-535"


def model_request(name: str, image: str, model: str, role: str) -> dict[str, Any]:
    """Parameters of ``create_model``.

    Args:
        name: Of the model in SageMaker.
        image: In Amazon ECR.
        model: ``s3://`` address of a model.tar.gz.
        role: ARN of a role that SageMaker may assume to read the image and the data.
    """
    return {
        "ModelName": name,
        "PrimaryContainer": {"Image": image, "ModelDataUrl": model},
        "ExecutionRoleArn": role,
        # The server needs no network.
        "EnableNetworkIsolation": True,
    }


def job_request(name: str, source: str, output: str, *, gpu: bool = False) -> dict[str, Any]:
    """Parameters of ``create_transform_job``.

    MaxConcurrentTransforms, MaxPayloadInMB and BatchStrategy are left out on purpose: the platform then asks
    the container, which knows its machine's memory and processors.

    Args:
        name: Of the job, and of its model.
        source: ``s3://`` prefix of the input files, CSV without a header line.
        output: ``s3://`` prefix of the answers: one ``.out`` file for each input file.
        gpu: Whether the image is a GPU variant.
    """
    resources = {"InstanceType": "ml.g4dn.xlarge" if gpu else "ml.m5.xlarge", "InstanceCount": 1}
    if gpu:
        resources["TransformAmiVersion"] = GPU_AMI
    return {
        "TransformJobName": name,
        "ModelName": name,
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source}},
            "ContentType": "text/csv",
            "SplitType": "Line",
        },
        # Answers end with a newline already, so AssembleWith stays None.
        "TransformOutput": {"S3OutputPath": output, "Accept": "text/csv"},
        "TransformResources": resources,
    }


def main() -> None:
    """Creates the model, runs the job, waits for its end and deletes the model."""
    import boto3  # noqa: PLC0415  the requests above can be used, and tested, without it

    parser = argparse.ArgumentParser(description="Run a Batch Transform job with onnx-serve.")
    for option in ("image", "role", "model", "input", "output"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    name = f"onnx-serve-{time.strftime('%Y%m%d-%H%M%S')}"
    sagemaker = boto3.client("sagemaker")
    sagemaker.create_model(**model_request(name, options.image, options.model, options.role))
    try:
        sagemaker.create_transform_job(**job_request(name, options.input, options.output, gpu=options.gpu))
        sagemaker.get_waiter("transform_job_completed_or_stopped").wait(TransformJobName=name)
        job = sagemaker.describe_transform_job(TransformJobName=name)
        print(f"{name}: {job['TransformJobStatus']} {job.get('FailureReason', '')}".strip())
    finally:
        sagemaker.delete_model(ModelName=name)


if __name__ == "__main__":
    main()
