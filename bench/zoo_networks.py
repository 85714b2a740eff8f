"""Neural networks of the usual kinds: dense, convolutional, recurrent, transformer, embedding.

Their weights are random: what they compute means nothing, what they cost is what such models cost.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto

from bench.onnx_graph import MICROSOFT, Graph, Shape

FEATURES, CLASSES = 30, 3
SEQUENCE, CHANNELS = 64, 32
VOCABULARY, MAX_TOKENS = 30_522, 512
TABLE_ROWS, TABLE_IDS = 1_000_000, 16
PIXELS, MASK_PIXELS = 224, 128
LATENT, WIDE = 64, 1024

ROW: dict[str, tuple[int, Shape]] = {"x": (TensorProto.FLOAT, ["N", FEATURES])}


def _dense_layers(graph: Graph, sizes: Sequence[int], result: str) -> None:
    value = "x"
    for index in range(len(sizes) - 1):
        last = index == len(sizes) - 2
        value = graph.dense(
            value, sizes[index], sizes[index + 1], relu=not last, result=result if last else ""
        )


def perceptron(path: Path) -> None:
    """An MLP of 30-1024-1024-3."""
    graph = Graph(6)
    _dense_layers(graph, (FEATURES, 1024, 1024, CLASSES), "y")
    graph.save(path, ROW, {"y": ["N", CLASSES]})


def quantised(path: Path) -> None:
    """The same MLP after dynamic quantisation: its scales depend on all rows of a run."""
    from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415  loads onnxruntime

    whole = path.with_suffix(".float")
    perceptron(whole)
    quantize_dynamic(whole, path)
    whole.unlink()


def autoencoder(path: Path) -> None:
    """1024 numbers in, as many out."""
    graph = Graph(7)
    _dense_layers(graph, (WIDE, 256, 32, 256, WIDE), "y")
    graph.save(path, {"x": (TensorProto.FLOAT, ["N", WIDE])}, {"y": ["N", WIDE]})


def generator(path: Path) -> None:
    """An autoencoder's second half: the answer is many times the request."""
    graph = Graph(8)
    _dense_layers(graph, (LATENT, 256, WIDE), "y")
    graph.save(path, {"x": (TensorProto.FLOAT, ["N", LATENT])}, {"y": ["N", WIDE]})


def _convolution(graph: Graph, value: str, channels: tuple[int, int], size: int, *, stride: int = 1) -> str:
    inputs, outputs = channels
    kernel = graph.weights(outputs, inputs, size, size, fan_in=inputs * size * size)
    bias = graph.constant(np.zeros(outputs, np.float32))
    return graph.add("Conv", value, kernel, bias, pads=[size // 2] * 4, strides=[stride] * 2)


def _residual(graph: Graph, value: str, channels: tuple[int, int], stride: int) -> str:
    outputs = channels[1]
    inner = graph.add("Relu", _convolution(graph, value, channels, 3, stride=stride))
    inner = _convolution(graph, inner, (outputs, outputs), 3)
    shortcut = (
        value
        if stride == 1 and channels[0] == outputs
        else _convolution(graph, value, channels, 1, stride=stride)
    )
    # Half of the sum: without normalisation the residual stream would double in every block.
    return graph.add(
        "Relu", graph.add("Mul", graph.add("Add", inner, shortcut), graph.constant(np.float32(0.5)))
    )


def resnet18(path: Path) -> None:
    """The layers of ResNet-18 (https://arxiv.org/abs/1512.03385), normalisation folded into convolutions."""
    graph = Graph(9)
    value = graph.add("Relu", _convolution(graph, "image", (3, 64), 7, stride=2))
    value = graph.add("MaxPool", value, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        value = _residual(graph, value, (inputs, outputs), 1 if inputs == outputs else 2)
        value = _residual(graph, value, (outputs, outputs), 1)
    graph.dense(graph.add("Flatten", graph.add("GlobalAveragePool", value)), 512, 1000, result="scores")
    graph.save(path, {"image": (TensorProto.FLOAT, ["N", 3, PIXELS, PIXELS])}, {"scores": ["N", 1000]})


def unet(path: Path) -> None:
    """Four levels down and up with skips, a mask as large as the image (https://arxiv.org/abs/1505.04597)."""
    graph, widths, skips, value, inputs = Graph(10), (32, 64, 128, 256), [], "image", 3
    for width in widths:
        for channels in ((inputs, width), (width, width)):
            value = graph.add("Relu", _convolution(graph, value, channels, 3))
        skips.append(value)
        value, inputs = graph.add("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2]), width
    value = graph.add("Relu", _convolution(graph, value, (inputs, 2 * inputs), 3))
    for width in reversed(widths):
        kernel = graph.weights(2 * width, width, 2, 2, fan_in=2 * width)
        up = graph.add("ConvTranspose", value, kernel, kernel_shape=[2, 2], strides=[2, 2])
        value = graph.add("Concat", up, skips.pop(), axis=1)
        for channels in ((2 * width, width), (width, width)):
            value = graph.add("Relu", _convolution(graph, value, channels, 3))
    graph.add("Sigmoid", _convolution(graph, value, (widths[0], 1), 1), result="mask")
    shape: Shape = ["N", 3, MASK_PIXELS, MASK_PIXELS]
    graph.save(path, {"image": (TensorProto.FLOAT, shape)}, {"mask": ["N", 1, MASK_PIXELS, MASK_PIXELS]})


def text_detector(path: Path) -> None:
    """A detector of any image size: strided convolutions, a pyramid, a map of probabilities."""
    graph, value, inputs, levels = Graph(11), "x", 3, []
    for width in (24, 48, 96, 192):
        value = graph.add("Relu", _convolution(graph, value, (inputs, width), 3, stride=2))
        value, inputs = graph.add("Relu", _convolution(graph, value, (width, width), 3)), width
        levels.append(_convolution(graph, value, (width, 48), 1))
    for level in reversed(levels[:-1]):
        larger = graph.add(
            "Resize", levels[-1], "", graph.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest"
        )
        levels[-1] = graph.add("Add", larger, level)
    up = graph.add(
        "Resize", levels[-1], "", graph.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest"
    )
    graph.add("Sigmoid", _convolution(graph, up, (48, 1), 3), result="map")
    graph.save(path, {"x": (TensorProto.FLOAT, ["N", 3, "H", "W"])}, {"map": ["N", 1, "H", "W"]})


def _attention(graph: Graph, value: str, mask: str, hidden: int, heads: int) -> str:
    split = graph.constant([0, 0, heads, hidden // heads])
    parts = [graph.add("Reshape", graph.dense(value, hidden, hidden), split) for _ in range(3)]
    query, values = (graph.add("Transpose", parts[index], perm=[0, 2, 1, 3]) for index in (0, 2))
    key = graph.add("Transpose", parts[1], perm=[0, 2, 3, 1])
    scale = graph.constant(np.float32(math.sqrt(heads / hidden)))
    scores = graph.add("Add", graph.add("Mul", graph.add("MatMul", query, key), scale), mask)
    seen = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), values)
    joined = graph.add(
        "Reshape", graph.add("Transpose", seen, perm=[0, 2, 1, 3]), graph.constant([0, 0, hidden])
    )
    return graph.dense(joined, hidden, hidden)


def _normalised(graph: Graph, first: str, second: str, hidden: int) -> str:
    scale, bias = (graph.constant(np.full(hidden, fill, np.float32)) for fill in (1, 0))
    return graph.add("LayerNormalization", graph.add("Add", first, second), scale, bias, axis=-1)


def transformer(path: Path) -> None:
    """Six layers of BERT's encoder, hidden size 384, 12 heads (https://arxiv.org/abs/1810.04805)."""
    graph, hidden, heads = Graph(12), 384, 12
    words = graph.add("Gather", graph.weights(VOCABULARY, hidden, fan_in=hidden), "input_ids")
    zero = graph.constant([0])
    length = graph.add("Shape", "input_ids", start=1, end=2)
    places = graph.add("Slice", graph.weights(MAX_TOKENS, hidden, fan_in=hidden), zero, length, zero)
    value = _normalised(graph, words, places, hidden)
    seen = graph.add(
        "Unsqueeze", graph.add("Cast", "attention_mask", to=TensorProto.FLOAT), graph.constant([1, 2])
    )
    unseen = graph.add("Sub", graph.constant(np.float32(1)), seen)
    mask = graph.add("Mul", unseen, graph.constant(np.float32(-1e4)))
    for _ in range(6):
        value = _normalised(graph, value, _attention(graph, value, mask, hidden, heads), hidden)
        inner = graph.add("Gelu", graph.dense(value, hidden, 4 * hidden), domain=MICROSOFT)
        value = _normalised(graph, value, graph.dense(inner, 4 * hidden, hidden), hidden)
    first = graph.add("Gather", value, graph.constant(np.int64(0)), axis=1)
    graph.dense(first, hidden, CLASSES, result="scores")
    ids: tuple[int, Shape] = (TensorProto.INT64, ["N", "S"])
    graph.save(path, {"input_ids": ids, "attention_mask": ids}, {"scores": ["N", CLASSES]})


def lstm(path: Path) -> None:
    """Two layers of 256 over 64 steps."""
    graph, hidden, inputs = Graph(13), 256, CHANNELS
    value = graph.add("Transpose", "x", perm=[1, 0, 2])
    for layer in range(2):
        weights = [graph.weights(1, 4 * hidden, width, fan_in=width) for width in (inputs, hidden)]
        state = f"state{layer}"
        value = graph.add("LSTM", value, *weights, also=[state], hidden_size=hidden)
        value, inputs = graph.add("Squeeze", value, graph.constant([1])), hidden
    graph.dense(graph.add("Squeeze", state, graph.constant([0])), hidden, CLASSES, result="y")
    graph.save(path, {"x": (TensorProto.FLOAT, ["N", SEQUENCE, CHANNELS])}, {"y": ["N", CLASSES]})


def embedding(path: Path) -> None:
    """A table of a million vectors inside the file (256 MB)."""
    graph, width = Graph(14), 64
    vectors = graph.add("Gather", graph.constant(graph.normal(TABLE_ROWS, width)), "ids")
    mean = graph.add("ReduceMean", vectors, graph.constant([1]), keepdims=0)
    graph.dense(mean, width, CLASSES, result="y")
    graph.save(path, {"ids": (TensorProto.INT64, ["N", TABLE_IDS])}, {"y": ["N", CLASSES]})
