"""Encoders of categories: the position of each value among the categories, and what the encoder makes of it.

skl2onnx's converters cast numbers to int64 or float32 before they look them up, so that 1.5 passes for the category 1,
and know neither missing values nor, of one matrix, infrequent categories. Here values are looked up in their own type.
A value that an encoder with ``handle_unknown="error"`` does not know ends the run, as no row of the table is its own.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

from converters.errors import ConversionError
from converters.graph import ML, Graph
from converters.sklearn_formulas import alias_of, splice
from onnx_serve.tensors import Array

__all__ = ["register"]

# From an encoder and a column's number to the table [categories + 1, width] that a value's position picks a row of; the
# last row, which may be absent, is that of unknown values.
Table: TypeAlias = Callable[[Any, int], Array]
# A row of each part, [N, 1], as ``_one_hot`` or ``_plain`` has it: a graph, what a table gave, the encoder, the column.
Finish: TypeAlias = Callable[[Graph, str, Any, int], str]
_NOWHERE = -1  # no column of a one-hot encoding


def register() -> None:
    """Registers the classes with skl2onnx, in the place of its own converters."""
    kinds: tuple[tuple[type, Table, Finish], ...] = (
        (OneHotEncoder, _places, _one_hot),
        (OrdinalEncoder, _ordinals, _plain),
        (TargetEncoder, _means, _plain),
    )
    for kind, table, finish in kinds:
        update_registered_converter(kind, alias_of(kind), _shapes, _converter(table, finish))


def _shapes(operator: Any) -> None:
    model, [output] = operator.raw_operator, operator.outputs
    if np.issubdtype(getattr(model, "dtype", np.float64), np.integer):
        kind = Int64TensorType
    else:
        double = any(isinstance(variable.type, DoubleTensorType) for variable in operator.inputs)
        kind = DoubleTensorType if double else FloatTensorType
    output.type = kind([operator.inputs[0].get_first_dimension(), len(model.get_feature_names_out())])


def _converter(table: Table, finish: Finish) -> Callable[[Any, Any, Any], None]:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        model, [output] = operator.raw_operator, operator.outputs
        graph = Graph(scope.get_unique_operator_name("encoder") + "_")
        parts = []
        for index, (value, kind) in enumerate(_columns(graph, operator.inputs)):
            position = _position(graph, value, kind, model.categories_[index])
            found = graph.add("Gather", graph.constant(table(model, index)), position, axis=0)
            parts.append(finish(graph, found, model, index))
        joined = graph.add("Concat", *parts, axis=1)
        graph.add("Cast", joined, output=output.full_name, to=_element(output))
        splice(graph, container)

    return convert


def _element(variable: Any) -> int:
    kinds = {Int64TensorType: TensorProto.INT64, DoubleTensorType: TensorProto.DOUBLE}
    return int(kinds.get(type(variable.type), TensorProto.FLOAT))


# --- What a value is --------------------------------------------------------------------------------


def _columns(graph: Graph, variables: Sequence[Any]) -> Iterator[tuple[str, type]]:
    """The columns [N] of the inputs, which have one or more each, with their types."""
    for variable in variables:
        for index in range(variable.get_second_dimension()):
            column = graph.add("Gather", variable.full_name, graph.constant(index, np.int64), axis=1)
            yield column, type(variable.type)


def _position(graph: Graph, value: str, kind: type, categories: Array) -> str:
    """The position INT64[N] of each value among the categories, or their number if it is none of them."""
    if kind is StringTensorType:
        return _looked_up(graph, value, _texts(categories), "keys_strings", len(categories))
    if kind not in {DoubleTensorType, FloatTensorType}:
        whole = graph.add("Cast", value, to=TensorProto.INT64)
        return _looked_up(graph, whole, _whole(categories), "keys_int64s", len(categories))
    return _compared(graph, value, np.float64 if kind is DoubleTensorType else np.float32, categories)


def _texts(categories: Array) -> dict[str, int]:
    """Positions by text. Whole numbers are text where skl2onnx has joined their column to one of text."""
    texts = map(str, categories.astype(np.int64)) if categories.dtype.kind in "iub" else categories
    return {str(text): position for position, text in enumerate(texts) if isinstance(text, str)}


def _whole(categories: Array) -> dict[int, int]:
    """Positions by whole number; no other is equal to one."""
    return {
        int(number): position
        for position, number in enumerate(categories.tolist())
        if isinstance(number, int | float) and number == number // 1
    }


def _looked_up(graph: Graph, value: str, keys: dict[Any, int], attribute: str, unknown: int) -> str:
    if not keys:
        raise ConversionError("an encoder's categories are of another type than its column: no converter")
    attributes: dict[str, Any] = {attribute: list(keys), "values_int64s": list(keys.values())}
    return graph.add("LabelEncoder", value, domain=ML, default_int64=unknown, **attributes)


def _compared(graph: Graph, value: str, dtype: Any, categories: Array) -> str:
    """Numbers are compared one by one: no operator looks up doubles, and NaN is equal to nothing."""
    numbers = [number if isinstance(number, int | float) else None for number in categories.tolist()]
    # Infinity stands for what no finite number equals; categories are finite, or NaN.
    known = np.array([np.inf if number is None else number for number in numbers], dtype)
    column = graph.add("Unsqueeze", value, graph.constant([1], np.int64))
    hits = graph.add("Equal", column, graph.constant(np.nan_to_num(known, nan=np.inf)[None, :]))
    missing = np.isnan(known)
    if missing.any():
        holes = graph.add("And", graph.add("IsNaN", column), graph.constant(missing[None, :]))
        hits = graph.add("Or", hits, holes)
    # The first of the greatest: a hit, or the column beyond them, which always is one.
    padded = graph.add(
        "Pad", graph.add("Cast", hits, to=TensorProto.FLOAT), graph.constant([0, 0, 0, 1], np.int64),
        graph.constant(1.0, np.float32),
    )  # fmt: skip
    return graph.add("ArgMax", padded, axis=1, keepdims=0)


# --- What becomes of it -----------------------------------------------------------------------------


def _places(model: OneHotEncoder, column: int) -> Array:
    """The column [categories + 1] of the encoding that gets the 1 (``OneHotEncoder.transform``)."""
    places, infrequent = _grouped(model, column)
    unknown = _NOWHERE
    if infrequent is not None and model.handle_unknown in {"infrequent_if_exist", "warn"}:
        unknown = int(places[infrequent])
    places = np.append(places, unknown)
    dropped = None if model.drop_idx_ is None else model._drop_idx_after_grouping[column]  # noqa: SLF001  no public form
    if dropped is not None:
        places = np.where(places == dropped, _NOWHERE, places - (places > dropped))
    return places[:-1] if model.handle_unknown == "error" else places


def _grouped(model: Any, column: int) -> tuple[Array, int | None]:
    """The number [categories] of each category once infrequent ones are one, and one of these, if there are any."""
    numbers = np.arange(len(model.categories_[column]))
    if not getattr(model, "_infrequent_enabled", False):
        return numbers, None
    mapping = model._default_to_infrequent_mappings[column]  # noqa: SLF001  no public form
    if mapping is None:
        return numbers, None
    # OrdinalEncoder leaves the missing value, which comes last, out of the groups.
    numbers[: len(mapping)] = mapping
    return numbers, int(model._infrequent_indices[column][0])  # noqa: SLF001


def _one_hot(graph: Graph, found: str, model: OneHotEncoder, column: int) -> str:
    width = model._n_features_outs[column]  # noqa: SLF001  no public form
    places = graph.add("Unsqueeze", found, graph.constant([1], np.int64))
    hits = graph.add("Equal", places, graph.constant(np.arange(width)[None, :], np.int64))
    return graph.add("Cast", hits, to=TensorProto.FLOAT)


def _ordinals(model: OrdinalEncoder, column: int) -> Array:
    """The number [categories + 1, 1] of each category (``OrdinalEncoder.transform``)."""
    numbers = _grouped(model, column)[0].astype(np.float64)
    if column in model._missing_indices:  # noqa: SLF001  no public form
        numbers[model._missing_indices[column]] = model.encoded_missing_value  # noqa: SLF001
    if model.handle_unknown == "error":
        return numbers[:, None]
    return np.append(numbers, model.unknown_value)[:, None]


def _means(model: TargetEncoder, column: int) -> Array:
    """The means [categories + 1, width] of the target; unknown values get that of all rows."""
    overall = np.ravel(model.target_mean_)
    first = column * len(overall)
    encodings = np.stack(model.encodings_[first : first + len(overall)], axis=1)
    return np.concatenate([encodings, overall[None, :]])


def _plain(_graph: Graph, found: str, _model: Any, _column: int) -> str:
    return found
