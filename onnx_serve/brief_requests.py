"""Which requests will take next to no time, so that they need no thread of their own."""

import math
from collections.abc import Mapping

from onnx_serve.codecs import table
from onnx_serve.repository import Repository

__all__ = ["BriefRequests"]

_TEXT = frozenset((*table.CSV.media_types, *table.DEFAULT.media_types, *table.JSON_LINES.media_types))
_TENSORS = frozenset(table.NPY.media_types)


class BriefRequests:
    """Knows how long requests take. Thread-safe.

    Args:
        repository: Of the models that they are for.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def estimate(self, path: str, headers: Mapping[str, str], body: bytes) -> float:
        """Seconds of the model's runs for a request, as far as is known; see ``workers.Estimate``."""
        if path == "/ping":
            return 0.0
        cost = self._repository.record_cost
        if cost is None or "CONTENT_ENCODING" in headers or not self._is_for_default(path):
            return math.inf
        media_type = headers.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        if media_type in _TEXT:
            return cost.of_text(body)
        return cost.of_tensors(body) if media_type in _TENSORS else math.inf

    def _is_for_default(self, path: str) -> bool:
        """Whether the default model is to answer, which alone is measured and always loaded."""
        if path == "/invocations":
            return True
        folder = self._repository.folder
        return (
            folder is not None
            and folder.default is not None
            and path == f"/v2/models/{folder.default.name}/infer"
        )
