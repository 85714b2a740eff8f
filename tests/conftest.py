"""Before anything imports onnxruntime: its wheels report usage unless told not to."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
