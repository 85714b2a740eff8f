"""Which job the outputs of a folder are of: so that a rerun does not mix the answers of two models.

The folder has a hidden file with a digest of everything that decides what an answer is: the job's options, the
settings that are about models and formats, and the names, sizes and times of the model's files, or the server's
address. What only decides how fast the job is, is left out. Below the digest stands, a line each, how many records
of an input were answered by placeholders: a rerun that finds the input done still says so.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
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
        lines = self._lines()
        if lines and lines[0] != digest:
            raise SettingsError(
                f"--output {self._path.parent}: holds outputs of another model or of other options; "
                f"choose another folder, or --overwrite"
            )

    def bad_records(self, names: AbstractSet[str]) -> dict[str, int]:
        """How many records of each of these inputs were bad, where any were."""
        found: dict[str, int] = {}
        for line in self._lines()[1:]:
            # Whoever was killed while writing has left half a line.
            with suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if entry["file"] in names:
                    found[entry["file"]] = int(entry["bad_records"])
        return found

    def write(self, digest: str, bad_records: Mapping[str, int]) -> None:
        """Records the job, whole or not at all.

        Args:
            digest: Of the job.
            bad_records: Of the inputs that are done.

        Raises:
            OSError: The folder cannot be written to.
        """
        partial = self._path.with_name(f"{_NAME}.partial")
        partial.write_text("".join([f"{digest}\n", *(_entry(*item) for item in bad_records.items())]))
        partial.replace(self._path)

    def add(self, name: str, bad_records: int) -> None:
        """Records how many records of an input were bad.

        Raises:
            OSError: The folder cannot be written to.
        """
        with self._path.open("a") as file:
            file.write(_entry(name, bad_records))

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return []


def _entry(name: str, bad_records: int) -> str:
    return json.dumps({"file": name, "bad_records": bad_records}) + "\n"


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
