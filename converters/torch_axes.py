"""Which dimensions of a torch model's inputs are free, found by running it at other sizes.

A module does not declare its dimensions. The batch is dimension 0 of every input, if the module runs at
other numbers of rows and gives each row the answer that it has alone. A length is a later dimension of a
sequence (rank 2 of integers or booleans, rank 3 of numbers), if the module runs at other lengths, alone
or together with the inputs of equal length. Pixels and features stay as the sample has them: a server
that knows them can read flat records. What the user names is taken as said, and then nothing is inferred.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from converters.errors import ConversionError, ConversionRefused
from converters.torch_feeds import Axis, CannotRun, resize
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

__all__ = ["BATCH", "Axes", "batch_positions", "infer", "parse", "runs_again"]

BATCH = "N"
_BATCH_NAMES = (BATCH, "n", "batch", "batch_size", "rows")
_LENGTH = "length"
_SIZE = "size"  # of dimension 0 where it does not count rows
_ROWS = 7
_SEQUENCE_RANKS = {"i": 2, "u": 2, "b": 2, "f": 3}

Call = Callable[[Tensors], Tensors]


@dataclass(frozen=True, slots=True)
class Axes:
    """The free dimensions of a program's inputs.

    Attributes:
        names: The symbol of each free dimension; equal symbols have equal sizes.
        rows: Whether dimension 0 of every input and output counts rows.
        sizes: For each symbol but the batch's, other sizes at which the original runs.
    """

    names: Mapping[Axis, str] = field(default_factory=dict)
    rows: bool = False
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of(self, symbol: str) -> tuple[Axis, ...]:
        """The dimensions that a symbol names."""
        return tuple(axis for axis, name in self.names.items() if name == symbol)

    def without_lengths(self) -> "Axes":
        """The batch alone."""
        return Axes({axis: name for axis, name in self.names.items() if axis[1] == 0}, self.rows)

    def resized(self, feed: Tensors, sizes: Mapping[str, int]) -> Tensors:
        """The feed with the dimensions of some symbols at other sizes."""
        return resize(feed, {axis: sizes[name] for axis, name in self.names.items() if name in sizes})


def parse(words: Iterable[str], sample: Tensors) -> dict[Axis, str]:
    """``["x:0=batch", "x:1=length"]`` as symbols by dimension.

    Raises:
        ConversionError: A word has another form, names no input, or a dimension that the input has not.
    """
    names: dict[Axis, str] = {}
    for word in words:
        place, _, symbol = word.partition("=")
        name, _, axis = place.rpartition(":")
        if not name or not axis.isdecimal() or not symbol.isidentifier():
            raise ConversionError(f"dynamic: expected input:axis=name, such as x:0=batch, got {quote(word)}")
        if name not in sample:
            raise ConversionError(
                f"dynamic: expected one of the inputs {', '.join(map(quote, sample))}, got {quote(name)}"
            )
        if len(axis) > 2 or int(axis) >= sample[name].ndim:  # noqa: PLR2004  PyTorch's tensors have 64 dimensions at most
            raise ConversionError(
                f"dynamic: input {quote(name)} has {sample[name].ndim} dimensions, counted from 0, got {axis}"
            )
        names[name, int(axis)] = symbol
    return names


def batch_positions(names: Mapping[Axis, str]) -> dict[str, int]:
    """Where each input has the batch, if the user named it on another dimension than 0."""
    found = {name: axis for (name, axis), symbol in names.items() if symbol.lower() in _BATCH_NAMES}
    return found if any(found.values()) else {}


def runs_again(call: Call, feed: Tensors) -> Tensors:
    """The answers to a feed, which must be the same twice.

    Raises:
        ConversionRefused: They are not: the original is random.
        CannotRun: It fails.
    """
    first, second = call(feed), call(feed)
    for name, array in first.items():
        if not _close(array, second[name]):
            raise ConversionRefused(
                f"output {quote(name)} differs from one run to the next on the same input: the module draws random "
                "numbers (dropout that eval() does not turn off?), and no graph can be compared with it"
            )
    return first


def infer(call: Call, sample: Tensors, given: Mapping[Axis, str], *, declared: bool = False) -> Axes:
    """The free dimensions of a program.

    Args:
        call: The original.
        sample: Rows that it runs.
        given: What the user named; if anything, nothing is inferred.
        declared: Whether ``given`` is what an exported program declares, which may tie dimensions together.

    Raises:
        ConversionRefused: Rows look like rows, but their answers depend on each other.
        ConversionError: A dimension that the user named has one size only.
    """
    if given:
        return _given(call, sample, given, declared=declared)
    names: dict[Axis, str] = {}
    rows = False
    batch: tuple[Axis, ...] = tuple((name, 0) for name in sample)
    if all(array.ndim for array in sample.values()) and len({len(array) for array in sample.values()}) == 1:
        rows, free = _try_rows(call, sample)
        names = dict.fromkeys(batch, BATCH if rows else _SIZE) if free else {}
    lengths, sizes = _lengths(call, sample, rows=rows)
    return Axes(names | lengths, rows, sizes)


def _given(call: Call, sample: Tensors, given: Mapping[Axis, str], *, declared: bool) -> Axes:
    sizes = {}
    for symbol in dict.fromkeys(given.values()):
        axes = tuple(axis for axis, name in given.items() if name == symbol)
        if len({sample[name].shape[axis] for name, axis in axes}) > 1:
            raise ConversionError(
                f"dynamic: the dimensions named {quote(symbol)} have several sizes in the sample"
            )
        sizes[symbol] = _sizes_that_run(call, sample, axes)
        if not sizes[symbol] and not declared:
            name, axis = axes[0]
            raise ConversionError(
                f"dynamic: the module runs at no other size of {quote(symbol)} than {sample[name].shape[axis]} "
                f"(input {quote(name)}, dimension {axis})"
            )
    batch = {given.get((name, 0)) for name in sample}
    rows = (
        len(batch) == 1
        and None not in batch
        and _try_rows(call, sample, refuse=batch <= set(_BATCH_NAMES))[0]
    )
    if rows:
        sizes = {symbol: found for symbol, found in sizes.items() if symbol not in batch}
    return Axes(dict(given), rows, sizes)


def _try_rows(call: Call, sample: Tensors, *, refuse: bool = True) -> tuple[bool, bool]:
    """Whether dimension 0 counts rows, and whether it is free.

    With one row a run the answers are the reference; rows that answer otherwise in company are refused,
    because a server that merges and cuts requests would answer wrongly.
    """
    try:
        feed = resize(sample, {(name, 0): _ROWS for name in sample})
        together = call(feed)
        alone = [call({name: array[row : row + 1] for name, array in feed.items()}) for row in range(_ROWS)]
    except CannotRun:
        return False, False
    for name, array in together.items():
        if array.ndim == 0 or len(array) != _ROWS or any(len(row[name]) != 1 for row in alone):
            return False, True
    for name, array in together.items():
        joined = np.concatenate([row[name] for row in alone]) if _same_shapes(name, alone) else None
        if joined is None or not _close(joined, array):
            if not refuse:
                return False, True
            raise ConversionRefused(
                f"output {quote(name)} gives a row another answer alone than among {_ROWS} rows, so requests cannot be "
                "merged or cut. If dimension 0 is no batch, name the one that is with --dynamic input:1=batch (the "
                "served model then takes it first), or name dimension 0 what it is, such as --dynamic input:0=points"
            )
    return True, True


def _same_shapes(name: str, outputs: list[Tensors]) -> bool:
    return len({output[name].shape for output in outputs}) == 1


def _lengths(
    call: Call, sample: Tensors, *, rows: bool
) -> tuple[dict[Axis, str], dict[str, tuple[int, ...]]]:
    """The lengths of sequences: each dimension alone where it can be, else with those of its size."""
    symbols: dict[Axis, str] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    groups: dict[int, list[Axis]] = {}

    def take(axes: Iterable[Axis], found: tuple[int, ...]) -> None:
        symbol = _LENGTH if not sizes else f"{_LENGTH}_{len(sizes) + 1}"
        sizes[symbol] = found
        symbols.update(dict.fromkeys(axes, symbol))

    for name, array in sample.items():
        if array.ndim != _SEQUENCE_RANKS.get(array.dtype.kind):
            continue
        # A convolution over time has it last: [N, channels, length].
        for axis in range(1, array.ndim):
            found = _sizes_that_run(call, sample, [(name, axis)], rows=rows)
            if _is_length(array.shape[axis], found):
                take([(name, axis)], found)
                break
        else:
            groups.setdefault(array.shape[1], []).append((name, 1))
    for size, axes in groups.items():
        # A mask may be of any type: it is known by its length.
        others = [(name, 1) for name, array in sample.items() if array.shape[1:] == (size,)]
        together = list(dict.fromkeys([*axes, *others]))
        found = _sizes_that_run(call, sample, together, rows=rows) if len(together) > 1 else ()
        if _is_length(size, found):
            take(together, found)
    return symbols, sizes


def _is_length(size: int, others: tuple[int, ...]) -> bool:
    """Whether a dimension that runs at other sizes is a length.

    One that can only be longer holds columns that are picked by number, and more that nobody reads. One
    that can only be 1 is broadcast. One that can only be shorter is a length at its most.
    """
    longer, shorter = [other for other in others if other > size], [other for other in others if other < size]
    return max(shorter, default=0) > 1 or (bool(longer) and (bool(shorter) or size == 1))


def _sizes_that_run(
    call: Call, sample: Tensors, axes: Iterable[Axis], *, rows: bool = False
) -> tuple[int, ...]:
    """Other sizes of some dimensions, changed together, at which the original runs; a longer one first.

    With ``rows``, every answer must still have a row for each of the sample's: one that is twice as long
    may be taken for two.
    """
    axes = tuple(axes)
    name, axis = axes[0]
    size = sample[name].shape[axis]
    found: list[int] = []
    for other in (size + 3, 2 * size, size - 1, size // 2):
        if other < 1 or other in (size, *found):
            continue
        try:
            answers = call(resize(sample, dict.fromkeys(axes, other)))
        except CannotRun:
            continue
        if not rows or all(array.shape[:1] == sample[name].shape[:1] for array in answers.values()):
            found.append(other)
    return tuple(found)


def _close(first: Array, second: Array) -> bool:
    if first.shape != second.shape:
        return False
    if first.dtype.kind != "f":
        return np.array_equal(first, second)
    scale = float(np.max(np.abs(first), initial=0.0, where=np.isfinite(first)))
    return bool(np.allclose(first, second, rtol=1e-3, atol=1e-4 * max(scale, 1e-30), equal_nan=True))
