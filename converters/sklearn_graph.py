"""Repairs of what skl2onnx makes: names, ZipMap, tokens, opsets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.graph import IR_VERSION, OPSET, set_opsets

__all__ = ["OPSET", "columns", "flat_labels", "keep_outputs", "rows_first", "tidy", "tokenizer_options"]

_DEFAULT_PATTERN = r"(?u)\b\w\w+\b"
# Python's \w is every letter, number and underscore; in RE2, which cuts the text in onnxruntime, it is
# ASCII (https://github.com/google/re2/wiki/Syntax), and skl2onnx's own default is [a-zA-Z0-9_]+.
_WORD = r"[\p{L}\p{N}_]"


def tokenizer_options(vectorizer: Any) -> dict[str, Any]:
    """Options by which skl2onnx cuts text as the vectorizer does; the gate tells whether it does."""
    if vectorizer.analyzer != "word":
        return {}
    pattern = str(vectorizer.token_pattern)
    if pattern == _DEFAULT_PATTERN:
        return {"tokenexp": _WORD + "{2,}"}
    # The longest match of letters ends at a word's boundary by itself.
    translated = pattern.removeprefix("(?u)").replace(r"\b", "").replace(r"[\w", "[" + _WORD[1:-1])
    return {"tokenexp": translated.replace(r"\w", _WORD).replace(r"\d", r"\p{Nd}")}


def tidy(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The same model with names of its own, N for the rows, no ZipMap and each opset once.

    Args:
        model: What skl2onnx made.
        inputs: The names that the inputs should have; skl2onnx may have changed them.
        outputs: The names for the outputs, in order.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _remove_zipmap(made.graph)
    _stack_sequences(made.graph)
    _invert_matrices(made.graph)
    old = [value.name for value in made.graph.input]
    _rename(made.graph, dict(zip(old, inputs, strict=False)))
    taken = {value.name for value in made.graph.input}
    names = [f"{name}_" if name in taken else name for name in outputs]
    _rename(made.graph, dict(zip([value.name for value in made.graph.output], names, strict=False)))
    for value in (*made.graph.input, *made.graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    made.graph.ClearField("value_info")
    made.graph.name = "model"
    made.producer_name, made.producer_version = "onnx-serve converters", ""
    made.doc_string = made.graph.doc_string = made.domain = ""
    made.ir_version = IR_VERSION
    set_opsets(made)
    return made


def columns(model: onnx.ModelProto, name: str, indices: Sequence[int]) -> onnx.ModelProto:
    """The model with only some columns of an output [N, any]: skl2onnx scores both of two classes."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    _rename(cut.graph, {name: f"{name}_all"})
    index = f"{name}_index"
    cut.graph.initializer.append(helper.make_tensor(index, TensorProto.INT64, [len(indices)], indices))
    cut.graph.node.append(
        helper.make_node("Gather", [f"{name}_all", index], [name], f"{name}_gather", axis=1)
    )
    _redeclare(cut.graph, f"{name}_all", name, ["N", len(indices)])
    return cut


def rows_first(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with an output [N, labels, classes] that was [labels, N, classes]."""
    turned = onnx.ModelProto()
    turned.CopyFrom(model)
    _rename(turned.graph, {name: f"{name}_turned"})
    turned.graph.node.append(
        helper.make_node("Transpose", [f"{name}_turned"], [name], f"{name}_transpose", perm=[1, 0, 2])
    )
    _redeclare(turned.graph, f"{name}_turned", name, ["N", None, None])
    return turned


def _redeclare(graph: onnx.GraphProto, old: str, new: str, shape: Sequence[Any]) -> None:
    """Another value of the same type as the graph's output."""
    for value in graph.output:
        if value.name == old:
            value.CopyFrom(helper.make_tensor_value_info(new, value.type.tensor_type.elem_type, shape))


def flat_labels(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with labels [N]: some converters of skl2onnx answer [1, N]."""
    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    _rename(flat.graph, {"label": "label_any"})
    flat.graph.initializer.append(helper.make_tensor("label_shape", TensorProto.INT64, [1], [-1]))
    flat.graph.node.append(
        helper.make_node("Reshape", ["label_any", "label_shape"], ["label"], "label_reshape")
    )
    _redeclare(flat.graph, "label_any", "label", ["N"])
    return flat


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with only some of its outputs."""
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    outputs = [value for value in kept.graph.output if value.name in names]
    del kept.graph.output[:]
    kept.graph.output.extend(outputs)
    return kept


def _remove_zipmap(graph: onnx.GraphProto) -> None:
    """A tensor in the place of each sequence of maps."""
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        [source], [target] = node.input, node.output
        graph.node.remove(node)
        graph.node.append(helper.make_node("Identity", [source], [target], f"{target}_identity"))
        for index, value in enumerate(graph.output):
            if value.name == target:
                width = max(len(attribute.ints) + len(attribute.strings) for attribute in node.attribute)
                tensor = helper.make_tensor_value_info(target, TensorProto.FLOAT, ["N", width])
                graph.output[index].CopyFrom(tensor)


def _stack_sequences(graph: onnx.GraphProto) -> None:
    """[N, labels, classes] in the place of a sequence of one matrix a label."""
    for value in list(graph.output):
        element = value.type.sequence_type.elem_type.tensor_type.elem_type
        if not value.type.HasField("sequence_type") or not element:
            continue
        inner = f"{value.name}_sequence"
        for node in graph.node:
            node.output[:] = [inner if name == value.name else name for name in node.output]
            node.input[:] = [inner if name == value.name else name for name in node.input]
        graph.node.append(
            helper.make_node("ConcatFromSequence", [inner], [value.name], f"{inner}_node", axis=1, new_axis=1)
        )
        value.CopyFrom(helper.make_tensor_value_info(value.name, element, ["N", None, None]))


def _invert_matrices(graph: onnx.GraphProto) -> None:
    """A product with the inverse in the place of skl2onnx's operator Solve, which onnxruntime does not have."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Solve" or node.input[0] not in constants:
            continue
        inverse = np.linalg.inv(numpy_helper.to_array(constants[node.input[0]]))
        name = f"{node.output[0]}_inverse"
        graph.initializer.append(numpy_helper.from_array(inverse, name))
        made = helper.make_node("MatMul", [name, node.input[1]], list(node.output), f"{name}_product")
        node.CopyFrom(made)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames values; one inside the graph that has such a name already gets an underscore."""
    names = {old: new for old, new in names.items() if old != new}
    changes = {new: f"{new}_inner" for new in names.values()} | names
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [changes.get(name, name) for name in values]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = changes.get(value.name, value.name)
