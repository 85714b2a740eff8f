"""The inputs of a torch model: what they are called, which are free by declaration, how they are passed.

An ``nn.Module`` says it in the signature of ``forward``, TorchScript in its schema, an exported program in its
graph's signature, where nested arguments are flat already.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree

from converters.errors import ConversionError, ConversionRefused
from converters.torch_results import to_array
from onnx_serve.errors import quote
from onnx_serve.tensors import Tensors

__all__ = [
    "Join",
    "check_names",
    "example_of",
    "exported_axes",
    "exported_call",
    "input_names",
    "module_call",
]

# From flat tensors to the arguments of a call.
Join = Callable[[Sequence[Any]], tuple[Sequence[Any], Mapping[str, Any]]]


def input_names(model: Any) -> tuple[str, ...]:
    """The names of the inputs that a model can be given, in its order.

    Those of a ``forward`` with ``*args`` or ``**kwargs`` are known only in part.

    Raises:
        ConversionRefused: An input of the exported program is no tensor and no constant, or there is no ``forward``.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return tuple(leaf for leaf in _exported_inputs(model) if isinstance(leaf, str))
    if isinstance(model, torch.jit.ScriptModule):
        if not hasattr(model, "forward"):
            raise ConversionRefused("the TorchScript module has no forward, or several")
        return tuple(argument.name for argument in model.forward.schema.arguments[1:])
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind not in variable
    )


def exported_axes(program: Any) -> dict[tuple[str, int], str]:
    """The dimensions that an exported program declares free, by input name and dimension.

    One symbol on dimension 0 of every input is the batch, ``N``; others are called after their first place.
    """
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    free: dict[tuple[str, int], str] = {}
    names = [name for name in _exported_inputs(program) if isinstance(name, str)]
    for name in names:
        for axis, size in enumerate(nodes[name].meta["val"].shape):
            if isinstance(size, torch.SymInt):
                free[name, axis] = str(size)
    batch = all((name, 0) in free for name in names)
    symbols: dict[str, str] = {}
    for (name, axis), symbol in free.items():
        called = "length" if axis == 1 and "length" not in symbols.values() else f"{name}_{axis}"
        symbols.setdefault(symbol, "N" if axis == 0 and batch else called)
    return {axis: symbols[symbol] for axis, symbol in free.items()}


def example_of(program: Any) -> Tensors:
    """The example that an exported program was saved with; empty if it carries none."""
    if program.example_inputs is None:
        return {}
    leaves = pytree.tree_leaves(program.example_inputs)
    names = _exported_inputs(program)
    return {
        name: to_array(name, leaf)
        for name, leaf in zip(names, leaves, strict=False)
        if isinstance(name, str) and isinstance(leaf, torch.Tensor)
    }


def module_call(module: Any, sample: Tensors) -> tuple[tuple[str, ...], Join]:
    """The inputs of a module, in the order of ``forward``, and how to pass them.

    Raises:
        ConversionError: The sample lacks one, or has one that ``forward`` does not take.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return tuple(sample), lambda tensors: (tensors, {})
    taken = input_names(module)
    extra = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    required = [
        parameter.name
        for parameter in parameters
        if parameter.name in taken and parameter.default is inspect.Parameter.empty
    ]
    check_names(sample, required, None if extra else taken)
    names = (*(name for name in taken if name in sample), *(name for name in sample if name not in taken))
    positional = {parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY}
    count = sum(name in positional for name in names)

    def join(tensors: Sequence[Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        return tensors[:count], dict(zip(names[count:], tensors[count:], strict=True))

    return names, join


def exported_call(program: Any, sample: Tensors) -> tuple[tuple[str, ...], Join]:
    """The inputs of an exported program, and how to pass them.

    Raises:
        ConversionError: The sample has others.
    """
    leaves = _exported_inputs(program)
    names = tuple(leaf for leaf in leaves if isinstance(leaf, str))
    check_names(sample, names, names)

    def join(tensors: Sequence[Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        left = iter(tensors)
        flat = [next(left) if isinstance(leaf, str) else leaf.value for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
        return args, kwargs

    return names, join


def _exported_inputs(program: Any) -> tuple[Any, ...]:
    """In order, the name of each input that is a tensor, and the constant of each that is none."""
    found: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, TensorArgument):
            found.append(spec.arg.name)
        elif isinstance(spec.arg, ConstantArgument):
            found.append(spec.arg)
        else:
            raise ConversionRefused(
                f"input {quote(spec.arg.name)} of the exported program is a {type(spec.arg).__name__}, not a tensor: "
                "only tensors can be sent to a server"
            )
    return tuple(found)


def check_names(sample: Tensors, required: Sequence[str], taken: Sequence[str] | None) -> None:
    """Raises ``ConversionError`` unless the sample has all that is required, and nothing that is not taken."""
    missing = [name for name in required if name not in sample]
    unknown = [] if taken is None else [name for name in sample if name not in taken]
    if missing or unknown:
        parts = [f"{word} {', '.join(map(quote, names[:5]))}" for word, names in
                 (("missing", missing), ("unknown", unknown)) if names]  # fmt: skip
        expected = ", ".join(map(quote, (taken or required)[:12]))
        raise ConversionError(f"sample: expected arrays for the inputs {expected}: {'; '.join(parts)}")
