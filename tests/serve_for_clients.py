"""Builds a folder of small models and serves it: ``python tests/serve_for_clients.py FOLDER PORT``.

Run by the server's Python, for tests of clients that live in an environment of their own.
"""

import sys
from pathlib import Path

from onnx import TensorProto

import onnx_models
from onnx_serve.cli import main


def build(folder: Path) -> None:
    """The models that the tests of the clients know."""
    onnx_models.two_inputs(folder / "pair.onnx")
    onnx_models.linear(folder / "lin" / "1" / "model.onnx", outputs=3)
    onnx_models.linear(folder / "lin" / "3" / "model.onnx", outputs=2)
    onnx_models.linear(folder / "alone" / "model.onnx", outputs=3)
    onnx_models.lookup(folder / "table.onnx")
    for name, kind in (
        ("BYTES", TensorProto.STRING),
        ("BOOL", TensorProto.BOOL),
        ("INT8", TensorProto.INT8),
        ("INT16", TensorProto.INT16),
        ("INT32", TensorProto.INT32),
        ("INT64", TensorProto.INT64),
        ("UINT8", TensorProto.UINT8),
        ("UINT16", TensorProto.UINT16),
        ("UINT32", TensorProto.UINT32),
        ("UINT64", TensorProto.UINT64),
        ("FP16", TensorProto.FLOAT16),
        ("BF16", TensorProto.BFLOAT16),
        ("FP32", TensorProto.FLOAT),
        ("FP64", TensorProto.DOUBLE),
    ):
        onnx_models.identity(folder / f"{name}.onnx", kind, ("N", 2))
    onnx_models.identity(folder / "scalar.onnx", TensorProto.FLOAT, ())
    (folder / "broken.onnx").write_bytes(b"no model")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    sys.exit(main(["serve", "--model-dir", sys.argv[1], "--host", "127.0.0.1", "--port", sys.argv[2]]))
