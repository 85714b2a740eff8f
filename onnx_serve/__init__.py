"""Serve any ONNX model on Amazon SageMaker.

The way of one request is drawn in ``docs/architecture.md``. Importing this package is cheap: neither
onnxruntime nor any converter is imported until it is needed.
"""

__version__ = "0.1.0"
