"""ONNX graphs built node by node, with seeded weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

ML, MICROSOFT = "ai.onnx.ml", "com.microsoft"
Shape = Sequence[int | str]


class Graph:
    """A graph under construction. Its results are numbered unless ``result`` names them."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, array: npt.ArrayLike) -> str:
        """An initializer."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weights(self, *shape: int, fan_in: int) -> str:
        """Normally distributed, so scaled that activations neither grow nor vanish."""
        return self.constant(self.normal(*shape) * np.float32(math.sqrt(2 / fan_in)))

    def normal(self, *shape: int) -> npt.NDArray[np.float32]:
        """Seeded random numbers, each time others."""
        return self._rng.standard_normal(shape, np.float32)

    def add(
        self,
        operator: str,
        *inputs: str,
        result: str = "",
        also: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """A node; the name of its first result. ``also`` names further ones."""
        name = result or f"r{len(self._nodes)}"
        outputs = [name, *also]
        self._nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return name

    def dense(self, value: str, inputs: int, outputs: int, *, relu: bool = False, result: str = "") -> str:
        """A fully connected layer of FLOAT[N, inputs] or FLOAT[N, S, inputs]."""
        product = self.add("MatMul", value, self.weights(inputs, outputs, fan_in=inputs))
        bias = self.constant(np.zeros(outputs, np.float32))
        if not relu:
            return self.add("Add", product, bias, result=result)
        return self.add("Relu", self.add("Add", product, bias), result=result)

    def save(
        self, path: Path, inputs: dict[str, tuple[int, Shape]], outputs: dict[str, Shape | None]
    ) -> None:
        """Writes the model.

        Args:
            path: The file.
            inputs: Their element types (TensorProto's) and shapes.
            outputs: Their shapes; of INT64 if called label or of FLOAT; None for a sequence of maps.
        """
        graph = helper.make_graph(
            self._nodes,
            path.parent.name,
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [_output(name, shape) for name, shape in outputs.items()],
            self._constants,
        )
        opsets = [
            helper.make_opsetid(domain, version) for domain, version in (("", 18), (ML, 3), (MICROSOFT, 1))
        ]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


def _output(name: str, shape: Shape | None) -> onnx.ValueInfoProto:
    if shape is not None:
        kind = TensorProto.INT64 if name == "label" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)
    values = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    maps = helper.make_map_type_proto(TensorProto.STRING, values)
    return helper.make_value_info(name, helper.make_sequence_type_proto(maps))
