"""What becomes of bad records: each is answered by what is wrong with it, all others as if it were not there.

A record is bad when it cannot be decoded, when ``conform`` refuses it, or when an operator of the model cannot
take its values (``InputRefused``). Whatever else goes wrong is not the record's fault and fails the request: no
memory, a failed device, a deadline.

Good records are run together, across the bad ones between them. Which record made a run fail is found by smaller
runs: by halves up to it, then doubled after each success. That takes about 2 log2(n) runs for a lone bad record
among n, and never more than 2 n + log2(n): where most records are bad, they are run one by one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, pairwise
from typing import Protocol

from onnx_serve.blocks import block_rows, join, merge, split
from onnx_serve.codecs.interface import BadRecord, Document, Place
from onnx_serve.errors import DecodeError, InputRefused, MismatchError
from onnx_serve.tensors import Feed, Signature, Tensors, Values, row_count

__all__ = ["Runner", "answer"]

# Bad records that may wait for the good ones before them to be run.
_MAX_WAITING = 4096


class Runner(Protocol):
    """What runs the model: ``batching.Engine``."""

    @property
    def signature(self) -> Signature:
        """The model's."""
        ...

    @property
    def block_rows(self) -> int:
        """Rows of one run at most."""
        ...

    def map(self, blocks: Iterable[Feed], gone: Callable[[], bool] | None = None) -> Iterator[Values]:
        """The outputs of each block, or of each piece of one, in order."""
        ...


def answer(
    document: Document,
    engine: Runner,
    judge: Callable[[Tensors], Feed],
    gone: Callable[[], bool] | None = None,
) -> Iterator[Values]:
    """The answers to all records of a document, in order: outputs of blocks, and ``BadRecord``.

    Args:
        document: Made of records; its blocks are read lazily, at most one block and 4096 bad records further than the
            engine asks for.
        engine: Runs the model.
        judge: Makes a feed of a block, or refuses it with a ``MismatchError``; ``conform``.
        gone: Tells the engine whether nobody waits for the answers any more.

    Raises:
        ServeError: The blocks, the judge or the engine raised it for another reason than a record.
    """
    source = iter(document.blocks)
    first = next(source, None)
    if first is None:
        return
    second = next(source, None)
    if second is None and _is_one_run(first, engine):
        # Most small requests: what keeps records in order would cost a tenth of their time.
        try:
            outputs = list(engine.map((judge(first),), gone))
        except (InputRefused, MismatchError):
            pass  # for the reason that is found below
        else:
            yield from outputs
            return
    read = iter([first] if second is None else [first, second])
    # Nothing here keeps blocks that have been answered.
    del first, second
    run = partial(engine.map, gone=gone)
    yield from _Answering(chain(read, source), document.place or _at_record, engine, run, judge).answers()


def _at_record(problem: str, number: int) -> DecodeError:
    return DecodeError(problem, record=number)


def _is_one_run(block: Tensors, engine: Runner) -> bool:
    return not isinstance(block, BadRecord) and (
        not engine.signature.has_rows or block_rows(block) <= engine.block_rows
    )


class _Answering:
    """One document on its way. Records that could be decoded are counted from 0; the others stand between them.

    Attributes:
        read: Records read.
        bad: Those that could not be decoded and are not yet answered, each with the records read before it.
        held: Blocks to be merged before they are run, of ``held_rows`` records.
        again: Blocks to be handed to the engine once more.
        flying: Blocks that the engine has, or as the last one a block that the judge refused; unanswered but for
            ``first`` records of the first one.
        answered: Records answered, one way or the other.
        errors: Bad ones of ``bad`` that are answered.
        smooth: Records answered since a run was refused.
    """

    def __init__(
        self,
        source: Iterator[Tensors],
        place: Place,
        engine: Runner,
        run: Callable[[Iterable[Feed]], Iterator[Values]],
        judge: Callable[[Tensors], Feed],
    ) -> None:
        self.source = source
        self.place = place
        self.engine = engine
        self.run = run
        self.judge = judge
        self.has_rows = engine.signature.has_rows
        self.whole = frozenset(spec.name for spec in engine.signature.defaults)
        self.ended = False
        self.bad: deque[tuple[int, BadRecord]] = deque()
        self.held: list[Tensors] = []
        self.again: deque[Tensors] = deque()
        self.flying: deque[Tensors] = deque()
        self.read = self.held_rows = self.first = self.answered = self.errors = self.smooth = 0

    def answers(self) -> Iterator[Values]:
        while not self.ended or self.again:
            try:
                for outputs in self.run(self._feeds()):
                    rows = (row_count(next(iter(outputs.values()))) or 0) if self.has_rows else 1
                    self.smooth += rows
                    yield from self._place(outputs, rows)
            except InputRefused:
                pass  # because of which records, is found out now
            if self.flying:
                yield from self._find_refused()
            yield from self._bad_so_far()

    def _feeds(self) -> Iterator[Feed]:
        """Feeds for the engine, until the blocks end, too many bad records wait, or the judge refuses one."""
        for block in self._blocks():
            try:
                feed = self.judge(block)
            except MismatchError:
                if not self._is_divisible(block):
                    raise
                self.flying.append(block)
                return
            self.flying.append(feed)
            yield feed

    def _blocks(self) -> Iterator[Tensors]:
        """Blocks to be run. Once a record was bad, small blocks are merged across those that are."""
        while self.again:
            yield self.again.popleft()
        most = self.engine.block_rows
        for block in self.source:
            if isinstance(block, BadRecord):
                self.bad.append((self.read, block))
                if len(self.bad) == _MAX_WAITING:
                    break
                continue
            rows = self._rows(block)
            ready = None
            if self.held and (self.held_rows + rows > most or not self._are_alike(self.held[0], block)):
                ready = self._take_held()
            self.read += rows
            self.held_rows += rows
            self.held.append(block)
            if ready is not None:
                yield ready
            if self.held_rows >= most or not (self.has_rows and (self.bad or self.errors)):
                yield self._take_held()
        else:
            self.ended = True
        if self.held:
            yield self._take_held()

    def _take_held(self) -> Tensors:
        held = self.held
        self.held, self.held_rows = [], 0
        return merge(held) if len(held) > 1 else held[0]

    def _place(self, outputs: Values, rows: int) -> Iterator[Values]:
        """Answers the next records, with the bad ones before and among them."""
        yield from self._bad_so_far()
        if not self.bad or self.bad[0][0] >= self.answered + rows:
            yield outputs
        else:
            places = [at - self.answered for at, _ in self.bad if at < self.answered + rows]
            counts = [end - start for start, end in pairwise((0, *places, rows))]
            for number, part in enumerate(split(outputs, counts)):
                if counts[number]:
                    yield part
                if number < len(places):
                    self.errors += 1
                    yield self.bad.popleft()[1]
        self.answered += rows
        self.first += rows
        while self.flying and self.first >= (size := self._rows(self.flying[0])):
            self.flying.popleft()
            self.first -= size

    def _bad_so_far(self) -> Iterator[BadRecord]:
        """The bad records before the next one to be answered."""
        while self.bad and self.bad[0][0] <= self.answered:
            self.errors += 1
            yield self.bad.popleft()[1]

    def _find_refused(self) -> Iterator[Values]:
        """Answers what is left of the first run in flight, or of all: one of its records was refused.

        What the engine has beyond it is thrown away and run again, which pays while most runs go well.
        """
        unanswered = sum(map(self._rows, self.flying)) - self.first
        pays = self.smooth >= unanswered - self.engine.block_rows
        self.smooth = 0
        end = self.first + self.engine.block_rows
        while self.flying:
            feed, start = self.flying[0], self.first
            rows = self._rows(feed)
            yield from self._search(feed, start, min(end, rows) if pays else rows)
            if pays:
                self._run_again()

    def _run_again(self) -> None:
        """Takes back what is in flight."""
        if self.first:
            self.flying[0] = self._part(self.flying[0], self.first, self._rows(self.flying[0]))
            self.first = 0
        self.again.extendleft(reversed(self.flying))
        self.flying.clear()

    def _search(self, block: Tensors, start: int, end: int) -> Iterator[Values]:
        """Answers records of a block of which some may be refused.

        The first refused one is looked for by halves in what a refused run has left; behind it runs double.
        """
        step = end - start
        suspect = start  # before this one there is a refused record
        while start < end:
            rows = max(1, (suspect - start) // 2) if suspect > start else min(step, end - start)
            rows = min(rows, self.engine.block_rows)
            try:
                feed = self.judge(self._part(block, start, start + rows))
                outputs = list(self.run([feed]))
            except (InputRefused, MismatchError) as ex:
                if rows > 1:
                    suspect = start + rows
                    continue
                yield from self._bad_so_far()
                outputs = [BadRecord(str(self.place(str(ex), self.answered + self.errors + 1)))]
                step = 1
            else:
                step = 2 * rows
            start += rows
            yield from self._place(outputs[0] if len(outputs) == 1 else join(outputs), rows)

    def _rows(self, block: Tensors) -> int:
        return block_rows(block) if self.has_rows else 1

    def _part(self, block: Tensors, start: int, end: int) -> Tensors:
        if not self.has_rows:
            return block
        return {name: value if name in self.whole else value[start:end] for name, value in block.items()}

    def _are_alike(self, one: Tensors, other: Tensors) -> bool:
        """Whether two blocks can be merged."""
        return (
            one.keys() == other.keys()
            and self.whole.isdisjoint(one)
            and all(
                array.shape[1:] == other[name].shape[1:] and array.dtype == other[name].dtype
                for name, array in one.items()
            )
        )

    def _is_divisible(self, block: Tensors) -> bool:
        """Whether the block is made of records, of which one may be to blame."""
        counts = {row_count(value) for name, value in block.items() if name not in self.whole}
        return not self.has_rows or (len(counts) == 1 and None not in counts)
