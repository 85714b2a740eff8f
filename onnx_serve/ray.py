"""Batch jobs on many machines, with Ray Data: https://docs.ray.io/en/latest/data/batch_inference.html.

Ray cuts and places the data; each of its actors holds one session and answers batches through ``Inference``, the
one way of a request, as Arrow tables: columns become inputs and outputs become columns as the media type
``application/vnd.apache.arrow.stream`` has it (docs/formats.md), so that results equal those of the server and of
``onnx-serve transform``. Ray is imported when it is needed only; it comes with the extra ``ray``.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from onnx_serve.errors import MismatchError, ModelError, SettingsError, quote

if TYPE_CHECKING:
    import pyarrow as pa

    from onnx_serve.repository import Repository

__all__ = ["OnnxPredictor", "batch_rows", "connect", "predict", "transform_files"]

_STREAM = "application/vnd.apache.arrow.stream"
_VARIABLE = "ONNX_SERVE_"
_READERS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}
# A batch of this many blocks for each slot keeps all slots busy while its rest is decoded and encoded.
_BLOCKS_A_SLOT = 8
# Ray's datasets have no types: https://docs.ray.io/en/latest/data/api/dataset.html
Dataset: TypeAlias = Any


class OnnxPredictor:
    """A callable class for ``Dataset.map_batches``: one session an actor, shared by its slots.

    An actor that Ray gave GPUs runs on CUDA and fails without it; one without GPUs runs on the CPU, with as many
    slots as Ray gave it CPUs. Use ``batch_format="pyarrow"``. Not thread-safe: Ray calls an actor once at a time.

    Args:
        model_dir: Folder of the model, on every machine that runs actors.
        keep: Columns of the input that the result has too, before the outputs; True for all.
        settings: By their names in config.yaml, spelled as in ``ONNX_SERVE_*``: ``{"block_rows": 64}``.

    Raises:
        ModelError: There is no servable model, or no CUDA where Ray gave a GPU.
        SettingsError: A setting is wrong.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        keep: Sequence[str] | bool = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        cpus, gpus = _assigned()
        self._keep = keep
        self._repository = _load(model_dir, cpus, gpus, settings or {})
        self._inference = self._repository.default()

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """The model's outputs for the rows of a table, in its order.

        Raises:
            RequestError: The columns or values are not what the model takes.
            ServeError: The model failed.
        """
        from pyarrow import ipc  # noqa: PLC0415  loaded by who needs it

        from onnx_serve.codecs.interface import Body  # noqa: PLC0415

        kept = self._kept(batch)
        sink = io.BytesIO()
        with ipc.new_stream(sink, batch.schema) as writer:
            writer.write_table(batch)
        length = sink.tell()
        sink.seek(0)
        reply = self._inference(Body(sink, length), _STREAM, _STREAM)
        # A long answer is a file, which is read whole into the table anyway.
        content = reply.content if isinstance(reply.content, bytes) else _read(reply.content)
        with ipc.open_stream(content) as reader:
            outputs = reader.read_all()
        if not kept:
            return outputs
        table = batch.select(kept)
        for field, column in zip(outputs.schema, outputs.columns, strict=True):
            table = table.append_column(field, column)
        return table

    def _kept(self, batch: "pa.Table") -> list[str]:
        kept = list(batch.column_names) if self._keep is True else list(self._keep or ())
        outputs = {spec.name for spec in self._inference.signature.outputs}
        for name in kept:
            if name not in batch.column_names:
                raise MismatchError(f"keep: the data has no column {quote(name)}")
            if name in outputs:
                raise MismatchError(f"keep: the column {quote(name)} has the name of an output")
        return kept


def batch_rows(model_dir: str | Path, *, num_cpus: int = 1, settings: Mapping[str, Any] | None = None) -> int:
    """Rows of a batch that keep an actor's slots busy: eight of the engine's blocks for each.

    The blocks are those that the server would run. The model is loaded for it, on the CPU of this machine.

    Raises:
        ModelError: There is no servable model.
    """
    repository = _load(model_dir, num_cpus, 0, settings or {})
    try:
        engine = repository.default().engine
        return _BLOCKS_A_SLOT * engine.block_rows * engine.slots
    finally:
        repository.close()


def predict(  # noqa: PLR0913  Ray's parameters by their names
    dataset: Dataset,
    model_dir: str | Path,
    *,
    concurrency: int | tuple[int, int],
    num_cpus: int = 1,
    num_gpus: float = 0,
    batch_size: int | None = None,
    keep: Sequence[str] | bool = (),
    settings: Mapping[str, Any] | None = None,
) -> Dataset:
    """The dataset of the model's outputs; as lazy as all of Ray Data.

    Ray does not keep the order of rows unless it is told to
    (https://docs.ray.io/en/latest/data/api/doc/ray.data.ExecutionOptions.html): keep a column that names them.

    Args:
        dataset: Its columns feed the inputs.
        model_dir: As for ``OnnxPredictor``.
        concurrency: Actors, or the least and the most of them.
        num_cpus: CPUs, and so slots, of each actor.
        num_gpus: GPUs of each actor.
        batch_size: Rows of a call; None for ``batch_rows``, which loads the model here once.
        keep: As for ``OnnxPredictor``.
        settings: As for ``OnnxPredictor``.

    Raises:
        SettingsError: Ray is not installed.
        ModelError: There is no servable model.
    """
    data = _ray_data()
    rows = batch_size or batch_rows(model_dir, num_cpus=num_cpus, settings=settings)
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    return dataset.map_batches(
        OnnxPredictor,
        fn_constructor_args=[str(model_dir)],
        fn_constructor_kwargs={"keep": keep, "settings": dict(settings or {})},
        batch_size=rows,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
        compute=data.ActorPoolStrategy(min_size=least, max_size=most),
    )


def connect(address: str | None = None) -> None:
    """Connects to a cluster; without an address to that of ``RAY_ADDRESS``, else starts Ray on this machine.

    Raises:
        SettingsError: Ray is not installed, or there is no cluster.
    """
    _ray_data()
    import ray  # noqa: PLC0415  an extra

    try:
        ray.init(address, ignore_reinit_error=True, include_dashboard=None if address else False)
    except (ConnectionError, ValueError, RuntimeError) as ex:
        raise SettingsError(f"Ray: no cluster at {quote(address)}: {quote(ex)}") from ex


def transform_files(
    inputs: Sequence[str | Path],
    output: str | Path,
    model_dir: str | Path,
    *,
    header: bool = False,
    **options: Any,
) -> int:
    """Answers every record of Parquet or CSV files, written as a folder of Parquet files.

    Args:
        inputs: Files or folders of one format, where all of Ray's machines see them.
        output: A folder that is not there, or empty.
        model_dir: As for ``OnnxPredictor``.
        header: Whether the first line of each CSV file names its columns; else they are ``f0``, ``f1``, ...
        options: More of ``predict``'s.

    Returns:
        How many files were written.

    Raises:
        SettingsError: Ray is not installed, the inputs are of another format, or the output folder is not empty.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"output: expected an empty folder, got {quote(output)}")
    kind = _format(inputs)
    data = _ray_data()
    paths = [str(path) for path in inputs]
    if kind == "csv":
        from pyarrow import csv  # noqa: PLC0415

        read = csv.ReadOptions(autogenerate_column_names=not header)
        dataset = data.read_csv(paths, read_options=read)
    else:
        dataset = data.read_parquet(paths)
    predict(dataset, model_dir, **options).write_parquet(str(folder.absolute()))
    return sum(1 for _ in folder.rglob("*.parquet"))


def _format(inputs: Sequence[str | Path]) -> str:
    """``parquet`` or ``csv``, by the suffixes of the files, or of those in the folders."""
    kinds = set()
    for path in map(Path, inputs):
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        kinds |= {_READERS.get(file.suffix.lower(), file.suffix) for file in files}
    if len(kinds) != 1 or not kinds <= set(_READERS.values()):
        raise SettingsError(
            f"inputs: expected .parquet or .csv files of one kind, got {quote(sorted(kinds))}"
        )
    return str(kinds.pop())


def _read(file: BinaryIO) -> bytes:
    with file:
        return file.read()


def _ray_data() -> Any:
    try:
        from ray import data  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        raise SettingsError('Ray is not installed: pip install "onnx-serve[ray]"') from None
    return data


def _assigned() -> tuple[int, float]:
    """CPUs and GPUs that Ray gave to this actor; outside Ray one CPU."""
    try:
        import ray  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        return 1, 0
    if not ray.is_initialized():
        return 1, 0
    try:
        resources = ray.get_runtime_context().get_assigned_resources()
    except AssertionError:
        return 1, 0  # in the driver, which Ray assigns nothing
    return max(int(resources.get("CPU", 1)), 1), float(resources.get("GPU", 0))


def _load(model_dir: str | Path, cpus: int, gpus: float, settings: Mapping[str, Any]) -> "Repository":
    """The model folder's models, loaded as the server loads them, for this actor's share of the machine."""
    from onnx_serve.machine import read_machine  # noqa: PLC0415
    from onnx_serve.repository import Repository  # noqa: PLC0415  NumPy comes with it
    from onnx_serve.settings import load_settings  # noqa: PLC0415

    providers = "cuda,cpu" if gpus else "cpu"
    chosen = {
        "slots": str(cpus),
        "providers": providers,
        **{name: str(text) for name, text in settings.items()},
    }
    environ = {_VARIABLE + name.upper(): text for name, text in chosen.items()}
    loaded = load_settings(config_file=None, environ=environ, flags={"model_dir": str(model_dir)})
    repository = Repository(loaded, read_machine())
    try:
        repository.load()
    except BaseException:
        repository.close()
        raise
    if not repository.ready:
        raise ModelError(f"{model_dir}: no model was loaded")
    return repository
