"""The callable class for ``Dataset.map_batches``, and what calls it for a whole dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from onnx_serve.errors import MismatchError, ModelError, quote
from onnx_serve.ray import actors

if TYPE_CHECKING:
    import pyarrow as pa

    from onnx_serve.repository import Repository

__all__ = ["Dataset", "OnnxPredictor", "batch_rows", "predict"]

_VARIABLE = "ONNX_SERVE_"
# A batch of this many blocks for each slot keeps all slots busy while its rest is decoded and encoded.
_BLOCKS_A_SLOT = 8
# Ray's datasets have no types: https://docs.ray.io/en/latest/data/api/dataset.html
Dataset: TypeAlias = Any


class OnnxPredictor:
    """A callable class for ``Dataset.map_batches``: one session an actor, shared by its slots.

    An actor that Ray gave GPUs runs on CUDA and fails without it; one without GPUs runs on the CPU, with as many
    slots as Ray gave it CPUs. Use ``batch_format="pyarrow"``. Not thread-safe: Ray calls an actor once at a time.

    With the setting ``record_errors: placeholder`` a bad record has nulls in all outputs, and a last column
    ``error`` says what is wrong with it; it is null elsewhere.

    Args:
        model_dir: Folder of the model, on every machine that runs actors.
        keep: Columns of the input that the result has too, before the outputs; True for all. Where the model's
            inputs are not all columns, those that are kept are not fed to it.
        settings: By their names in config.yaml, spelled as in ``ONNX_SERVE_*``: ``{"block_rows": 64}``.
        lines: Media type of the lines in a column ``text``, as Ray's ``read_text`` gives them; None for columns
            of values.

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
        lines: str | None = None,
    ) -> None:
        cpus, gpus = actors.assigned()
        self._keep = keep
        self._lines = lines
        self._repository = _load(model_dir, cpus, gpus, settings or {})
        self._inference = self._repository.default()
        self._marks_errors = self._repository.settings.record_errors == "placeholder"

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """The model's outputs for the rows of a table, in its order.

        Raises:
            RequestError: The columns or values are not what the model takes.
            ServeError: The model failed.
        """
        from onnx_serve.codecs import arrow_outputs  # noqa: PLC0415  loaded by who needs it
        from onnx_serve.ray import batches  # noqa: PLC0415

        batch = batches.plain_tensors(batch)
        kept = self._kept(batch)
        signature = self._inference.signature
        sent = ["text"] if self._lines else batches.fed_columns(batch, kept, signature)
        if self._marks_errors:
            outputs = batches.answer_each(batch.select(sent), self._ask, arrow_outputs.schema(signature))
        else:
            outputs = self._ask(batch.select(sent))
        if not kept:
            return outputs
        table = batch.select(kept)
        for field, column in zip(outputs.schema, outputs.columns, strict=True):
            table = table.append_column(field, column)
        return table

    def _ask(self, table: "pa.Table") -> "pa.Table":
        from pyarrow import ipc  # noqa: PLC0415

        from onnx_serve.ray import batches  # noqa: PLC0415

        body = batches.as_lines(table) if self._lines else batches.as_stream(table)
        reply = self._inference(body, self._lines or batches.ARROW, batches.ARROW)
        # A long answer is a file, which is read whole into the table anyway.
        content = reply.content if isinstance(reply.content, bytes) else _read(reply.content)
        with ipc.open_stream(content) as reader:
            return reader.read_all()

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
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    batch_size: int | None = None,
    keep: Sequence[str] | bool = (),
    settings: Mapping[str, Any] | None = None,
    lines: str | None = None,
) -> Dataset:
    """The dataset of the model's outputs; as lazy as all of Ray Data.

    Ray does not keep the order of rows unless it is told to
    (https://docs.ray.io/en/latest/data/api/doc/ray.data.ExecutionOptions.html): keep a column that names them.

    Args:
        dataset: Its columns feed the inputs.
        model_dir: As for ``OnnxPredictor``.
        concurrency: Actors, or the least and the most of them; None for as many as the cluster's machines hold
            now (``actors.actor_pool``).
        num_cpus: CPUs, and so slots, of each actor; None for its share of a machine.
        num_gpus: GPUs of each actor; None for one where the cluster has any.
        batch_size: Rows of a call; None for ``batch_rows``, which loads the model here once.
        keep: As for ``OnnxPredictor``.
        settings: As for ``OnnxPredictor``.
        lines: As for ``OnnxPredictor``.

    Raises:
        SettingsError: Ray is not installed, or the cluster has no room for an actor.
        ModelError: There is no servable model.
    """
    data = actors.ray_data()
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    pool = actors.actor_pool(actors.machines(), actors=most, cpus=num_cpus, gpus=num_gpus)
    rows = batch_size or batch_rows(model_dir, num_cpus=pool.slots, settings=settings)
    return dataset.map_batches(
        OnnxPredictor,
        fn_constructor_args=[str(model_dir)],
        fn_constructor_kwargs={"keep": keep, "settings": dict(settings or {}), "lines": lines},
        batch_size=rows,
        batch_format="pyarrow",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        compute=data.ActorPoolStrategy(min_size=least or 1, max_size=pool.actors),
    )


def _read(file: BinaryIO) -> bytes:
    with file:
        return file.read()


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
