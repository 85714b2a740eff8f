"""Files to files with Ray Data: it reads and cuts them, and writes a folder of Parquet files."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.errors import SettingsError, quote
from onnx_serve.ray.actors import ray_data
from onnx_serve.ray.predictor import Dataset, predict

__all__ = ["Written", "transform_files"]

_KINDS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonlines",
    ".ndjson": "jsonlines",
    ".npy": "npy",
}
_ERROR = "error"


@dataclass(frozen=True, slots=True)
class Written:
    """What a job has made.

    Attributes:
        files: Of Parquet.
        rows: In them.
        bad_records: Of the rows, those without an answer.
    """

    files: int
    rows: int
    bad_records: int


def transform_files(
    inputs: Sequence[str | Path],
    output: str | Path,
    model_dir: str | Path,
    *,
    header: bool = False,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Written:
    """Answers every record of Parquet, CSV, JSON lines or NPY files, written as a folder of Parquet files.

    JSON lines are decoded as the server decodes them, and so is CSV where bad records are to be marked; Parquet
    and other CSV have columns that can be kept.

    Args:
        inputs: Files or folders of one format, where all of Ray's machines see them.
        output: A folder that is not there, or empty; of a job that fails it has nothing.
        model_dir: As for ``OnnxPredictor``.
        header: Whether the first line of each CSV file names its columns; else they are ``f0``, ``f1``, ...
        settings: As for ``OnnxPredictor``.
        options: More of ``predict``'s.

    Returns:
        What was written.

    Raises:
        SettingsError: Ray is not installed, the inputs are of another format, or the output folder is not empty.
    """
    folder = Path(output).absolute()
    kind = _kind(inputs)
    settings = settings or {}
    marks_errors = settings.get("record_errors") == "placeholder"
    if marks_errors and kind == "csv":
        if header:
            raise SettingsError("record_errors: placeholder needs CSV without a line of names on Ray")
        kind = "csv lines"
    with _whole(folder) as partial:
        dataset, lines = _read(kind, [str(path) for path in inputs], header=header)
        made = predict(dataset, model_dir, settings=settings, lines=lines, **options)
        made.write_parquet(str(partial))
        return _count(partial, marks_errors=marks_errors)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Where files may be written that appear in the folder at the block's end, all or none.

    Raises:
        SettingsError: The folder has something in it already, or another job writes there.
    """
    with OutputFolder(folder).lock():
        if any(map(_is_data, folder.iterdir())):
            raise SettingsError(f"output: expected an empty folder, got {quote(folder)}")
        # Readers of Parquet leave such names out, should the job be killed.
        partial = folder / "_partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            yield partial
            # Ray makes the folder when it has something to write.
            for file in list(partial.glob("*")):
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _is_data(path: Path) -> bool:
    """Not what is hidden, nor what Hadoop, Spark and Arrow take for no data (``_SUCCESS``)."""
    return not path.name.startswith((".", "_"))


def _read(kind: str, paths: list[str], *, header: bool) -> tuple[Dataset, str | None]:
    """The dataset, and the media type of its lines if it has them."""
    data = ray_data()
    if kind == "parquet":
        return data.read_parquet(paths), None
    if kind == "npy":
        return data.read_numpy(paths), None
    if kind == "csv":
        from pyarrow import csv  # noqa: PLC0415

        read = csv.ReadOptions(autogenerate_column_names=not header)
        return data.read_csv(paths, read_options=read), None
    # A blank line is a record too.
    media_type = "application/jsonlines" if kind == "jsonlines" else "text/csv; header=absent"
    return data.read_text(paths, drop_empty_lines=False), media_type


def _kind(inputs: Sequence[str | Path]) -> str:
    """The format, by the suffixes of the files, or of those in the folders."""
    kinds = set()
    for path in map(Path, inputs):
        files = (
            [file for file in path.rglob("*") if file.is_file() and _is_data(file)]
            if path.is_dir()
            else [path]
        )
        kinds |= {_KINDS.get(file.suffix.lower(), file.suffix) for file in files}
    if len(kinds) != 1 or not kinds <= set(_KINDS.values()):
        raise SettingsError(
            f"inputs: expected files of one kind, {', '.join(_KINDS)}; got {quote(', '.join(sorted(kinds)))}"
        )
    return str(kinds.pop())


def _count(folder: Path, *, marks_errors: bool) -> Written:
    """What the files say of themselves, without reading their columns but the one of errors."""
    from pyarrow import parquet  # noqa: PLC0415

    files = sorted(folder.rglob("*.parquet"))
    rows = bad = 0
    for file in files:
        with parquet.ParquetFile(file) as reader:
            rows += reader.metadata.num_rows
            if marks_errors:
                errors = reader.read(columns=[_ERROR]).column(0)
                bad += len(errors) - errors.null_count
    return Written(len(files), rows, bad)
