"""``python -m onnx_serve`` is ``onnx-serve``."""

import sys

from onnx_serve.cli import main

if __name__ == "__main__":
    sys.exit(main())
