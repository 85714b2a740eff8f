"""Batch jobs on many machines, with Ray Data: https://docs.ray.io/en/latest/data/batch_inference.html.

Ray cuts and places the data; each of its actors holds one session and answers batches through ``Inference``, the
one way of a request, as Arrow tables: columns become inputs and outputs become columns as the media type
``application/vnd.apache.arrow.stream`` has it (docs/formats.md), so that results equal those of the server and of
``onnx-serve transform``. Ray is imported when it is needed only; it comes with the extra ``ray``.
"""

from onnx_serve.ray.actors import connect
from onnx_serve.ray.files import Written, transform_files
from onnx_serve.ray.predictor import OnnxPredictor, batch_rows, predict

__all__ = ["OnnxPredictor", "Written", "batch_rows", "connect", "predict", "transform_files"]
