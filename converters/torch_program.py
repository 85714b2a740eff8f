"""A torch model as a function from named arrays to named arrays, whatever form it came in.

Modules, scripted modules and exported programs take and give nested structures under names of their own. A
``Program`` is flat: tensors in, tensors out, each with the name that it will have in the graph. The
same flat module is what the exporters trace, so the graph and the original cannot disagree on the order.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from converters.errors import ConversionRefused
from converters.torch_feeds import CannotRun, quoted_shapes
from converters.torch_inputs import Join, check_names, exported_call, module_call
from converters.torch_results import Leaf, leaves_of, output_names, to_array
from onnx_serve.errors import quote
from onnx_serve.tensors import Tensors

__all__ = ["Program", "bind", "fast_path_differs"]


@dataclass(frozen=True, slots=True)
class Program:
    """A torch model that takes and gives named arrays.

    Attributes:
        module: Takes the inputs as positional tensors and gives a tuple of tensors.
        exported: The exported program, if it is one and is to be converted as it is.
        inputs: Names of the inputs, in order.
        outputs: Names of the outputs, in order.
        family: The class of the original.
    """

    module: Any
    exported: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    family: str

    @property
    def scripted(self) -> bool:
        """Whether it is TorchScript, which only the exporter of that name takes."""
        return isinstance(self.module, torch.jit.ScriptModule)

    def __call__(self, feed: Tensors) -> Tensors:
        """The original's answers; gradients are off.

        Raises:
            CannotRun: It fails on this feed.
            ConversionRefused: It answers with what is no array: bfloat16, complex or sparse tensors.
        """
        leaves = _run(self.module, self.tensors(feed), feed)
        if len(leaves) != len(self.outputs):
            raise CannotRun(
                f"the module answers with {len(leaves)} tensors, and with {len(self.outputs)} before"
            )
        return {name: to_array(name, leaf) for name, leaf in zip(self.outputs, leaves, strict=True)}

    def tensors(self, feed: Tensors) -> tuple[Any, ...]:
        """The feed as positional tensors; copies, because a module may write to its inputs."""
        return tuple(
            torch.from_numpy(np.array(feed[name], feed[name].dtype.newbyteorder("="), order="C"))
            for name in self.inputs
        )


def fast_path_differs(program: Program, feed: Tensors) -> bool:
    """Whether torch's fast path for transformers answers otherwise than the plain one, which counts here."""
    plain = program(feed)
    try:
        fast = _run(program.module, program.tensors(feed), feed, fast=True)
    except CannotRun:
        return True
    return any(
        leaf.shape != plain[name].shape
        or not np.allclose(leaf.numpy(), plain[name], 1e-3, 1e-4, equal_nan=True)
        for name, leaf in zip(program.outputs, fast, strict=True)
    )


def bind(
    model: Any,
    sample: Tensors,
    *,
    batch_inputs: Mapping[str, int] | None = None,
    batch_outputs: Sequence[int] = (),
) -> Program:
    """Makes a program of a model, by running it on a sample.

    Args:
        model: An ``nn.Module``, ``ScriptModule`` or ``ExportedProgram``.
        sample: Arrays by name; inputs that are not in it keep the default of ``forward``.
        batch_inputs: Where the model has its batch, for inputs where that is not dimension 0; the
            program has it there always.
        batch_outputs: The same for each output.

    Raises:
        CannotRun: The model fails on the sample.
        ConversionError: The sample's names are not the model's.
        ConversionRefused: It takes or gives something that is no tensor.
    """
    moves = batch_inputs or {}
    if isinstance(model, torch.jit.ScriptModule):
        return _bind_script(model, sample, moves, batch_outputs)
    exported = model if isinstance(model, torch.export.ExportedProgram) else None
    if exported is not None:
        names, join = exported_call(exported, sample)
        inner = exported.module()
    else:
        names, join = module_call(model, sample)
        inner = model.eval()
    flat = _Flat(inner, join, tuple(moves.get(name, 0) for name in names), tuple(batch_outputs))
    family = type(model).__name__
    found = _run(flat.leaves, Program(flat, None, names, (), family).tensors(sample), sample)
    # An exported program whose batch is moved is traced anew, with the moves.
    kept = None if any(moves.values()) or any(batch_outputs) else exported
    return Program(flat, kept, names, output_names([path for path, _, _ in found], names), family)


class _Flat(torch.nn.Module):  # type: ignore[misc]  # torch has no types where it is not installed
    """A module of positional tensors around one of any signature."""

    def __init__(
        self, module: Any, join: Join, moves_in: tuple[int, ...], moves_out: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.module = module
        self.join = join
        self.moves_in = moves_in
        self.moves_out = moves_out

    def leaves(self, *tensors: Any) -> list[Leaf]:
        """The tensors of the inner module's result, where it has them."""
        moved = [_moved(tensor, 0, axis) for tensor, axis in zip(tensors, self.moves_in, strict=True)]
        args, kwargs = self.join(moved)
        return list(leaves_of(self.module(*args, **kwargs)))

    def forward(self, *tensors: Any) -> tuple[Any, ...]:
        found = self.leaves(*tensors)
        moves = self.moves_out or (0,) * len(found)
        return tuple(_moved(leaf, axis, 0) for (_, _, leaf), axis in zip(found, moves, strict=True))


def _moved(tensor: Any, source: int, target: int) -> Any:
    return tensor if source == target else tensor.movedim(source, target)


def _bind_script(module: Any, sample: Tensors, moves: Mapping[str, int], moves_out: Sequence[int]) -> Program:
    """TorchScript cannot be wrapped in Python for its exporter, so the flat module is TorchScript too."""
    arguments = module.forward.schema.arguments[1:]
    check_names(sample, [argument.name for argument in arguments if not argument.has_default_value()],
                 [argument.name for argument in arguments])  # fmt: skip
    given = [argument for argument in arguments if argument.name in sample]
    for argument in given:
        if str(argument.type) not in ("Tensor", "Optional[Tensor]"):
            raise ConversionRefused(
                f"input {quote(argument.name)} of the TorchScript module is a {argument.type}, not a tensor: "
                "only tensors can be sent to a server"
            )
    module.eval()
    names = tuple(argument.name for argument in given)
    probe = Program(module, None, names, (), "")
    # The arguments before the first that the sample leaves out are positional; TorchScript names the rest.
    call = ", ".join(
        (f"a{index}" if argument is arguments[index] else f"{argument.name}=a{index}")
        + (f".movedim(0, {moves[argument.name]})" if moves.get(argument.name) else "")
        for index, argument in enumerate(given)
    )
    tensors = dict(zip(names, probe.tensors(sample), strict=True))
    shifted = {name: _moved(tensor, 0, moves.get(name, 0)) for name, tensor in tensors.items()}
    found = list(leaves_of(_run(module, (), sample, shifted)))
    results = [
        f"r{accessor}" + (f".movedim({moves_out[index]}, 0)" if moves_out and moves_out[index] else "")
        for index, (_, accessor, _) in enumerate(found)
    ]
    source = (
        f"def forward(self, {', '.join(f'a{index}: Tensor' for index in range(len(given)))}):\n"
        f"    r = self.module({call})\n    return ({', '.join(results)},)\n"
    )
    outputs = output_names([path for path, _, _ in found], names)
    family = getattr(module, "original_name", "") or "ScriptModule"
    return Program(_flat_script(module, source), None, names, outputs, family)


def _flat_script(module: Any, source: str) -> Any:
    """A scripted module of positional tensors around another; ``source`` is its TorchScript."""

    # A class of its own each time: TorchScript compiles one source for all instances of a class.
    class Flat(torch.jit.ScriptModule):  # type: ignore[misc]  # as for _Flat
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module
            self.define(source)

    try:
        return Flat(module).eval()
    except RuntimeError:
        # A module frozen in this process has a type of its own until it has been saved and loaded.
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        buffer.seek(0)
        return Flat(torch.jit.load(buffer, map_location="cpu")).eval()


def _run(
    module: Any,
    tensors: Sequence[Any],
    feed: Tensors,
    keywords: Mapping[str, Any] | None = None,
    *,
    fast: bool = False,
) -> Any:
    try:
        with torch.no_grad(), _fast_path(enabled=fast), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the module's own, and at every size
            return module(*tensors, **(keywords or {}))
    except ConversionRefused:
        raise
    except Exception as ex:
        raise CannotRun(f"the module cannot run {quoted_shapes(feed)}: {_first_line(ex)}") from ex


@contextlib.contextmanager
def _fast_path(*, enabled: bool) -> Iterator[None]:
    """Sets whether transformers may take the path that no exporter takes, and that depends on grad mode.

    On it, padded positions answer zeros: https://docs.pytorch.org/docs/stable/generated/torch.nn.TransformerEncoder.html.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled and before)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _first_line(ex: Exception) -> str:
    # TorchScript's errors begin with a heading and end with the line that says what is wrong.
    lines = [line.strip() for line in str(ex).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("RuntimeError:")]
    line = errors[-1] if errors else (lines[0] if lines else "")
    return f"{type(ex).__name__}: {line.removeprefix('RuntimeError: ')}"[:300]
