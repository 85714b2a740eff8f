"""What ``onnx-serve inspect`` prints: the models, how they are run, and every setting with its source."""

from collections.abc import Iterator
from pathlib import Path

from onnx_serve.errors import ModelError
from onnx_serve.golden_rows import model_hash
from onnx_serve.machine import Machine, read_machine
from onnx_serve.parity_record import PARITY_FILE, OutputParity, ParityRecord, read_parity_record
from onnx_serve.repository import Repository, Served
from onnx_serve.settings import Settings
from onnx_serve.tensors import RowAxis

__all__ = ["report"]

_ROWS = {
    RowAxis.FREE: "dimension 0, any number a run",
    RowAxis.FIXED: "dimension 0, exactly {} a run",
    RowAxis.NONE: "none: one request is one run",
}


def report(settings: Settings) -> str:
    """Loads the model folder's models as the server would, and describes them.

    Raises:
        ModelError: As the server would.
    """
    machine = read_machine()
    repository = Repository(settings, machine, whole_process=True)
    repository.load()
    try:
        repository.measure()
        return "\n".join(_lines(repository, machine))
    finally:
        repository.close()


def _lines(repository: Repository, machine: Machine) -> Iterator[str]:
    folder = repository.folder
    assert folder is not None
    yield f"models in {repository.settings.model_dir}"
    for file in folder.models:
        note = " (default)" if file is folder.default else ""
        yield f"  {file.name}: {file.relative}{note}"
    for name, served in repository.served.items():
        yield ""
        yield from _model_lines(served)
        place = folder.find(name)
        if place is not None:
            yield from _parity_lines(place.path, allow_links=repository.settings.allow_links)
    yield ""
    yield "machine"
    yield from (f"  {line}" for line in machine.describe())
    yield ""
    yield "execution parameters"
    yield from (f"  {line}" for line in repository.execution_parameters().describe())
    yield ""
    yield "settings"
    yield from (f"  {line}" for line in repository.settings.describe())


def _model_lines(served: Served) -> Iterator[str]:
    model, file, engine = served.model, served.file, served.inference.engine
    signature = model.signature
    yield f"model {model.name}"
    for title, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        yield f"  {title}"
        for spec in specs:
            yield f"    {spec.name}: {spec}"
    yield f"  rows: {_ROWS[signature.row_axis].format(signature.fixed_rows)}"
    yield f"  slots: {engine.slots}, blocks of {engine.block_rows} rows"
    opsets = ", ".join(f"{domain} {version}" for domain, version in file.opsets.items())
    yield f"  opsets: {opsets or 'not in this file format'}"
    for provider in model.providers:
        yield f"  provider {provider}: {dict(model.provider_options.get(provider, {}))}"
    yield f"  session: {dict(model.session_options)}"


def _parity_lines(path: Path, *, allow_links: bool) -> Iterator[str]:
    """What the record of the model's conversion says, or that there is none."""
    try:
        record = read_parity_record(path.parent, allow_links=allow_links)
    except ModelError as ex:
        yield f"  parity: cannot be read: {ex}"
        return
    if record is None:
        yield f"  parity: not recorded (no {PARITY_FILE} beside the model)"
        return
    yield f"  parity: {'passed' if record.passed else 'FAILED'}, {record.framework} {record.family}"
    for output in record.outputs:
        yield f"    {output.name}: {output.rows} rows, {_worst(output)}"
    for name in record.unchecked:
        yield f"    {name}: not compared, the original has no such answer"
    yield from _circumstances(record)
    yield from _hash_lines(record, model_hash(path))


def _worst(output: OutputParity) -> str:
    if output.kind == "label":
        return f"{output.label_disagreements} labels differ"
    return f"largest error {output.max_abs:.3g}, relative {output.max_rel:.3g}"


def _circumstances(record: ParityRecord) -> Iterator[str]:
    allowed = record.tolerances
    yield f"    tolerances: rtol {allowed.rtol:g}, atol {allowed.atol:g}, rows outside {allowed.rows:g}"
    yield f"    converted: {record.converted_at or 'at an unknown time'}"
    yield f"    seed: {'unknown' if record.seed is None else record.seed}"
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    yield f"    versions: {versions or 'unknown'}"


def _hash_lines(record: ParityRecord, actual: str) -> Iterator[str]:
    for name, value in record.hashes.items():
        note = ""
        if name == "model":
            note = " (this file)" if value == actual else f" (NOT this file, which has {actual})"
        yield f"    SHA-256 of the {name}: {value}{note}"
