"""Which job the outputs of a folder are of: so that a rerun does not mix the answers of two models.

The folder has a hidden file with a digest of everything that decides what an answer is: the job's options, the
settings that are about models and formats, and the names, sizes and times of the model's files, or the server's
address. What only decides how fast the job is, is left out.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.errors import SettingsError
from onnx_serve.settings import SETTINGS, Settings

__all__ = ["JobRecord", "job_digest"]

_NAME = ".onnx-serve-transform.job"
_DECIDING = ("model_dir", "default_model", "default_accept")
_MAX_FILES = 10_000


def job_digest(job: TransformJob, url: str | None, settings: Settings) -> str:
    """A text that differs between two jobs whose answers may differ."""
    default = TransformJob()
    deciding = replace(
        job,
        timeout_s=default.timeout_s,
        max_retries=default.max_retries,
        max_concurrent=default.max_concurrent,
    )
    digest = hashlib.sha256(repr((deciding, url)).encode())
    if url is None:
        for key, setting in SETTINGS.items():
            if setting.model_level or key in _DECIDING:
                digest.update(repr((key, getattr(settings, key))).encode())
        for line in sorted(_model_files(Path(settings.model_dir))):
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class JobRecord:
    """The record in an output folder. The folder must be locked.

    Args:
        folder: The outputs'.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def check(self, digest: str) -> None:
        """Refuses to add to the outputs of another job; a folder without a record is taken as it is.

        Raises:
            SettingsError: Another job made the outputs.
        """
        try:
            recorded = self._path.read_text()
        except OSError:
            return
        if recorded != digest:
            raise SettingsError(
                f"--output {self._path.parent}: holds outputs of another model or of other options; "
                f"choose another folder, or --overwrite"
            )

    def write(self, digest: str) -> None:
        """Records the job, whole or not at all.

        Raises:
            OSError: The folder cannot be written to.
        """
        partial = self._path.with_name(f"{_NAME}.partial")
        partial.write_text(digest)
        partial.replace(self._path)


def _model_files(folder: Path) -> Iterator[str]:
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                status = path.stat()
            except OSError:
                continue
            yield f"{path.relative_to(folder)}\0{status.st_size}\0{status.st_mtime_ns}\n"
            found += 1
            if found == _MAX_FILES:
                return
