"""What ``onnx-serve inspect`` prints: the models, how they are run, and every setting with its source."""

from collections.abc import Iterator

from onnx_serve.machine import Machine, read_machine
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
    repository = Repository(settings, machine)
    repository.load()
    try:
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
    for served in repository.served.values():
        yield ""
        yield from _model_lines(served)
    yield ""
    yield "machine"
    yield from (f"  {line}" for line in machine.describe())
    yield ""
    yield "execution parameters"
    for key, value in repository.execution_parameters().to_json().items():
        yield f"  {key}: {value}"
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
