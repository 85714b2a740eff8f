"""Records as JSON writes them, for documents and for lines; ``record_blocks`` makes arrays of them.

One record is one row of a model with rows, else all tensors of one run. It is written as

* the only input's value: a nested list, a number, a string;
* a flat list that fills the inputs in order, row-major, when their sizes are known;
* an object by input name;
* ``{"features": [...]}`` or ``{"data": {"features": {"values": [...]}}}``, also sparse with ``keys`` and
  ``shape``: https://docs.aws.amazon.com/sagemaker/latest/dg/cdf-inference.html
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from onnx_serve.codecs.json_nested import read_value
from onnx_serve.codecs.json_syntax import describe
from onnx_serve.codecs.json_values import Field, tensor
from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import Signature, TensorSpec

__all__ = ["Grammar", "grammar"]

_INPUTS_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Grammar:
    """How a model's records are written.

    Attributes:
        fields: The inputs, in the model's order.
        names: Their names.
        optional: Those among them that a record may leave out.
        defaults: Inputs that the model has values for.
        width: Values that one record gives all inputs together, or None when an input's number is not known.
        has_rows: Whether several records are one set of tensors.
        inputs: The inputs in words, for messages.
        marks_errors: Whether a bad record becomes a ``BadRecord`` instead of an error.
    """

    fields: tuple[Field, ...]
    names: frozenset[str]
    optional: frozenset[str]
    defaults: tuple[Field, ...]
    width: int | None
    has_rows: bool
    inputs: str
    marks_errors: bool = False

    @property
    def only(self) -> Field | None:
        """The field of a model with one input, if that is a tensor."""
        return self.fields[0] if len(self.fields) == 1 and not self.fields[0].value_type else None

    @property
    def are_tensors(self) -> bool:
        """Whether every input is a tensor."""
        return all(field.value_type is None for field in self.fields)

    def fits(self, names: AbstractSet[str], *, defaults: bool) -> bool:
        """Whether these names are the inputs'.

        Args:
            names: Keys of an object.
            defaults: Whether they may also be those of inputs that the model has values for.
        """
        if names == self.names:
            return True
        known = self.names | ({field.name for field in self.defaults} if defaults else set())
        return self.names - self.optional <= names <= known

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of one run by input name: all tensors, and what is no tensor.

        Args:
            values: As they are written, by names that ``fits``.

        Raises:
            DecodeError: One is not what its input takes; without its place.
        """
        given = (field for field in (*self.fields, *self.defaults) if field.name in values)
        return {
            field.name: read_value(values[field.name], field.value_type, field.name)
            if field.value_type
            else tensor(field.value(values[field.name]), field)
            for field in given
        }

    def split(self, record: Any) -> list[Any]:
        """A record's value for each input, nested as the input's shape is.

        Raises:
            DecodeError: The record has another form; without its place.
        """
        if isinstance(record, dict):
            if record.keys() == self.names:
                return [field.value(record[field.name]) for field in self.fields]
            if not self.are_tensors:
                raise DecodeError(f"expected an object with the inputs {self.inputs}, got {describe(record)}")
            return self.fill(self._features(record))
        if len(self.fields) == 1:
            return [self.fields[0].value(record)]
        return self.fill(record)

    def fill(self, flat: Any) -> list[Any]:
        """A flat list cut into a value for each input.

        Raises:
            DecodeError: It is no list of as many values as the inputs take; without its place.
        """
        if not isinstance(flat, list):
            raise DecodeError(f"expected a list of values for the inputs {self.inputs}, got {describe(flat)}")
        if len(self.fields) == 1 and len(self.fields[0].shape) == 1:
            return [flat]
        if self.width is None:
            raise DecodeError(
                f"expected an object with the inputs {self.inputs}, got a flat list: "
                "it cannot be divided among inputs of free size"
            )
        if len(flat) != self.width:
            raise DecodeError(
                f"expected {self.width} values for the inputs {self.inputs}, got {len(flat)} values"
            )
        values = []
        start = 0
        for field in self.fields:
            end = start + cast("int", field.width)
            values.append(field.nest(flat[start:end]))
            start = end
        return values

    def names_differ(self, names: Iterable[str]) -> str:
        """What the inputs are called, and which of these names are others; for messages."""
        given = dict.fromkeys(names)
        required = (field.name for field in self.fields if field.name not in self.optional)
        parts = [
            f"{word} {', '.join(map(quote, some[:5]))}"
            for word, some in (
                ("missing", [name for name in required if name not in given]),
                ("unknown", [name for name in given if name not in self.names]),
            )
            if some
        ]
        return f"expected the names {self.inputs}: {'; '.join(parts)}"

    def _features(self, record: dict[str, Any]) -> Any:
        if len(record) == 1 and "features" in record:
            return record["features"]
        keys = record.keys() - {"configuration"}
        if keys == {"features"}:
            return record["features"]
        data = record.get("data")
        if keys == {"data"} and isinstance(data, dict) and data.keys() == {"features"}:
            features = data["features"]
            if isinstance(features, dict) and features.keys() == {"values"}:
                return features["values"]
            if isinstance(features, dict) and features.keys() == {"keys", "shape", "values"}:
                return self._sparse(features["keys"], features["shape"], features["values"])
        raise DecodeError(
            f'expected a list, an object with the inputs {self.inputs}, {{"features": [...]}} or '
            f'{{"data": {{"features": {{"values": [...]}}}}}}, got {describe(record)}'
        )

    def _sparse(self, keys: Any, shape: Any, values: Any) -> list[Any]:
        """Sparse features made dense: all other values are 0."""
        # The size comes from the model, never from the request.
        if self.width is None or shape != [self.width] or type(shape[0]) is not int:
            expected = "inputs of known size" if self.width is None else f'"shape": [{self.width}]'
            raise DecodeError(f"sparse features: expected {expected}, got {describe(shape)}")
        if not isinstance(keys, list) or not isinstance(values, list) or len(keys) != len(values):
            raise DecodeError(
                f'sparse features: expected as many "values" as "keys", '
                f"got {describe(values)} and {describe(keys)}"
            )
        dense: list[Any] = [0] * self.width
        for key, value in zip(keys, values, strict=True):
            if type(key) is not int or not 0 <= key < self.width:
                raise DecodeError(
                    f"sparse features: expected keys from 0 to {self.width - 1}, got {describe(key)}"
                )
            dense[key] = value
        if len(set(keys)) != len(keys):
            raise DecodeError("sparse features: expected each key once")
        return dense


@lru_cache(maxsize=64)
def grammar(signature: Signature, *, marks_errors: bool = False) -> Grammar:
    """How records of a model are written.

    Args:
        signature: The model's.
        marks_errors: Whether a bad record becomes a ``BadRecord`` instead of an error.

    Raises:
        MismatchError: An input is of a type that is not supported.
    """
    fields = tuple(_field(spec, signature) for spec in signature.inputs)
    inputs = signature.describe_inputs() or "(none)"
    widths = [field.width for field in fields]
    return Grammar(
        fields,
        frozenset(field.name for field in fields),
        frozenset(spec.name for spec in signature.inputs if spec.is_optional),
        tuple(Field(spec.name, spec.dtype, spec.shape, None) for spec in signature.defaults),
        None if None in widths else sum(cast("list[int]", widths)),
        signature.has_rows,
        inputs if len(inputs) <= _INPUTS_SHOWN else f"{inputs[:_INPUTS_SHOWN]}...",
        marks_errors,
    )


def _field(spec: TensorSpec, signature: Signature) -> Field:
    if not spec.is_tensor:
        return Field(spec.name, spec.dtype, (), None, spec.value_type)
    return Field(spec.name, spec.dtype, signature.record_shape(spec), signature.record_width(spec) or None)
