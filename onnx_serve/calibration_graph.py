"""What a graph tells of the memory that its runs need, before any run."""

from collections.abc import Mapping
from pathlib import Path

from onnx_serve.errors import ModelError
from onnx_serve.model_files.onnx_file import read_onnx_file
from onnx_serve.tensors import Kind, Signature

__all__ = ["arena_only", "data_dependent", "has_loops", "operators_of", "sizes_by_value"]

# Operators whose outputs have shapes, or whose bodies have turns, that depend on values:
# https://onnx.ai/onnx/operators/
_BY_VALUE = frozenset(
    (
        "NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "Scan", "If", "Range", "SplitToSequence",
        "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap",
        "ConcatFromSequence", "StringSplit", "BeamSearch", "GreedySearch", "Sampling", "RoiAlign",
    )
)  # fmt: skip
# Operators that make tensors of a size that an integer input may give.
_BY_SIZE = frozenset(
    ("Resize", "Upsample", "Expand", "Tile", "ConstantOfShape", "OneHot", "Pad", "CenterCropPad", "TopK")
)
# An integer input of so few values a record is more likely a size than a list of tokens.
_FEW = 8
_LOOPS = frozenset(("Loop", "Scan"))


def operators_of(model: Path) -> Mapping[str, int] | None:
    """How often a model calls which operator; None for files that do not tell."""
    try:
        summary = read_onnx_file(model)
    except ModelError:
        return None
    return summary.operators if summary.format == "onnx" else None


def data_dependent(signature: Signature, operators: Mapping[str, int] | None) -> bool:
    """Whether a run's memory may depend on more than its number of rows.

    Args:
        signature: The model's.
        operators: How often ``domain::Operator`` is called; None if that is not known.
    """
    if sizes_by_value(signature, operators):
        return True
    # Strings are of any length.
    return any(signature.record_width(spec) is None or not spec.dtype.bits for spec in signature.inputs)


def sizes_by_value(signature: Signature, operators: Mapping[str, int] | None) -> bool:
    """Whether values of the inputs may decide how large tensors are and how often operators run.

    Args:
        signature: The model's.
        operators: How often ``domain::Operator`` is called; None if that is not known.
    """
    specs = signature.inputs
    if any(not spec.is_tensor or spec.value_type.kind is not Kind.TENSOR for spec in specs):
        return True
    if operators is None:
        return True
    names = {name.rpartition("::")[2] for name in operators}
    sizes = any(spec.dtype.is_integer and (signature.record_width(spec) or 0) <= _FEW for spec in specs)
    return bool(names & _BY_VALUE) or (sizes and bool(names & _BY_SIZE))


def arena_only(signature: Signature, operators: Mapping[str, int] | None) -> bool:
    """Whether what runs need lies in onnxruntime's arena: not so for trees, maps, sequences, strings, own operators.

    Args:
        signature: The model's.
        operators: How often ``domain::Operator`` is called; None if that is not known.
    """
    if operators is None:
        return False
    specs = (*signature.inputs, *signature.outputs)
    if any(spec.value_type.kind is not Kind.TENSOR or not spec.dtype.bits for spec in specs):
        return False
    domains = {name.rpartition("::")[0] for name in operators}
    return domains <= {"ai.onnx", "com.microsoft"}


def has_loops(operators: Mapping[str, int] | None) -> bool:
    """Whether a run may go through some nodes any number of times; not known counts as no.

    Args:
        operators: How often ``domain::Operator`` is called; None if that is not known.
    """
    return bool({name.rpartition("::")[2] for name in operators or ()} & _LOOPS)
