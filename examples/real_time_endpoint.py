"""Puts an image of onnx-serve behind a real-time endpoint, asks it once, and deletes everything again.

    pip install boto3
    python examples/real_time_endpoint.py \
        --image 123456789012.dkr.ecr.eu-west-1.amazonaws.com/onnx-serve:cpu \
        --role arn:aws:iam::123456789012:role/SageMakerRole \
        --model s3://my-bucket/iris/model.tar.gz --body 5.1,3.5,1.4,0.2

With ``--gpu`` the image must be the variant gpu-cuda13. docs/sagemaker.md explains the choices.
"""

import argparse
import time
from typing import Any

from batch_transform import model_request

# The machine image with NVIDIA's driver 580, the first one that runs CUDA 13.
GPU_AMI = "al2023-ami-sagemaker-inference-gpu-4-1"


def endpoint_config_request(name: str, *, gpu: bool = False) -> dict[str, Any]:
    """Parameters of ``create_endpoint_config`` for one machine.

    Args:
        name: Of the configuration, and of its model.
        gpu: Whether the image is the variant gpu-cuda13.
    """
    variant = {
        "VariantName": "all",
        "ModelName": name,
        "InstanceType": "ml.g5.xlarge" if gpu else "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    if gpu:
        variant["InferenceAmiVersion"] = GPU_AMI
    return {"EndpointConfigName": name, "ProductionVariants": [variant]}


def invocation(name: str, body: bytes) -> dict[str, Any]:
    """Parameters of ``invoke_endpoint``: CSV rows in, JSON out."""
    return {"EndpointName": name, "ContentType": "text/csv", "Accept": "application/json", "Body": body}


def main() -> None:
    """Creates model, configuration and endpoint, invokes it, and deletes them."""
    import boto3  # noqa: PLC0415  the requests above can be used, and tested, without it

    parser = argparse.ArgumentParser(description="Ask a real-time endpoint of onnx-serve once.")
    for option in ("image", "role", "model", "body"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    name = f"onnx-serve-{time.strftime('%Y%m%d-%H%M%S')}"
    sagemaker = boto3.client("sagemaker")
    sagemaker.create_model(**model_request(name, options.image, options.model, options.role))
    try:
        sagemaker.create_endpoint_config(**endpoint_config_request(name, gpu=options.gpu))
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        try:
            sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name)
            answer = boto3.client("sagemaker-runtime").invoke_endpoint(
                **invocation(name, options.body.encode())
            )
            print(answer["Body"].read().decode(), end="")
        finally:
            sagemaker.delete_endpoint(EndpointName=name)
            sagemaker.delete_endpoint_config(EndpointConfigName=name)
    finally:
        sagemaker.delete_model(ModelName=name)


if __name__ == "__main__":
    main()
