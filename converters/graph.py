"""ONNX graphs in the making: nodes and constants with names of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_serve.tensors import Array

__all__ = ["HIGHEST_OPSET", "IR_VERSION", "ML", "OPSET", "Graph", "set_opsets"]

ML = "ai.onnx.ml"
HIGHEST_OPSET = 20
# What graphs are stamped with, unless targets.converting_for says otherwise; the default is known to every
# onnxruntime from 1.17 on, and so to all that the project's extras allow. ai.onnx.ml 4 changes nothing that
# is used here, and 5 deprecates the tree operators that carry several targets a leaf.
OPSET = {"": HIGHEST_OPSET, ML: 3}
IR_VERSION = 8  # of 2021: nothing of later versions is used


@dataclass(slots=True)
class Graph:
    """Nodes and initializers; every name begins with ``prefix``, so that graphs can be joined."""

    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, values: Any, dtype: Any = None) -> str:
        """The name of an initializer that holds the values; text becomes STRING."""
        array = np.asarray(values, dtype)
        name = f"{self.prefix}constant{len(self.initializers)}"
        if array.dtype.kind in "US":
            array = array.astype(object)
        self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """The name of the only output of a new node."""
        output = output or f"{self.prefix}{operator.lower()}{len(self.nodes)}"
        node = helper.make_node(operator, inputs, [output], f"{output}_node", domain=domain, **attributes)
        self.nodes.append(node)
        return output

    def model(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> onnx.ModelProto:
        """The graph as a model, with the types and, beyond the rows, the shapes of example arrays."""
        made = helper.make_graph(
            self.nodes, "model", _infos(inputs), _infos(outputs), initializer=self.initializers
        )
        model = helper.make_model(made, producer_name="onnx-serve converters", ir_version=IR_VERSION)
        set_opsets(model)
        return model


def set_opsets(model: onnx.ModelProto) -> None:
    """Imports each domain once, in the version of ``OPSET`` where it has one."""
    domains = {entry.domain: entry.version for entry in model.opset_import}
    used = {"", *(node.domain for node in model.graph.node)}
    del model.opset_import[:]
    model.opset_import.extend(
        helper.make_opsetid(domain, OPSET.get(domain, domains.get(domain, 1))) for domain in sorted(used)
    )


def _infos(arrays: dict[str, Array]) -> Sequence[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(
            name,
            TensorProto.STRING if array.dtype.kind in "OU" else helper.np_dtype_to_tensor_dtype(array.dtype),
            ["N", *array.shape[1:]],
        )
        for name, array in arrays.items()
    ]
