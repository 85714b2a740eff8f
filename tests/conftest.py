"""What holds for all tests."""

import contextlib
import os

# Before anything imports onnxruntime: its wheels report usage unless told not to.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# The clients' environment does without Hypothesis.
with contextlib.suppress(ModuleNotFoundError):
    from hypothesis import settings

    # A check of a change must not depend on luck; elsewhere each run looks at other examples.
    settings.register_profile("ci", derandomize=True)
    if os.environ.get("CI"):
        settings.load_profile("ci")
