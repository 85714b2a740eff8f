"""The engine: shares one model between requests and spreads the rows of one request over all cores.

``Engine`` runs blocks on a fixed number of slots. A block that comes alone runs in its caller's thread, because
handing a small request to another thread costs more than the request; the blocks of a longer body are run by
the engine's own threads while the caller decodes the next one, and come back in order.

Merging is work-conserving: while a slot is free a block runs at once, so no request ever waits for company. While
all slots are busy, blocks queue; whose turn it is then takes the blocks of the same kind that wait behind it
into its own run. Requests are merged exactly when there is load.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from onnx_serve.abandonment import PATIENCE_S, Gone
from onnx_serve.blocks import block_rows, cut, first_rows, join, merge, pad, split
from onnx_serve.errors import Abandoned, InferenceError, OutOfMemory, ServeError
from onnx_serve.run_plan import RunPlan
from onnx_serve.tensors import Feed, RowAxis, Signature, Values, row_count

__all__ = ["Engine"]

_log = logging.getLogger("onnx_serve")

# What two blocks must have in common to share a run: the dimensions beside rows, by input. None: it never does.
_Kind = tuple[tuple[int, ...], ...] | None


@dataclass(eq=False, slots=True)
class _Block:
    """A block on its way through the engine.

    Attributes:
        feed: Its inputs.
        rows: How many it has; 0 for a model without rows.
        kind: What it may be merged with.
        most_rows: Rows of a run that takes it.
        gone: Tells whether nobody waits for its outputs any more. Asking costs a system call, and with it the
            interpreter's lock, so only what has waited for ``PATIENCE_S`` is asked about.
        since: When it began to wait, by the monotonic clock.
        turn: Its outputs if another's run has taken it along, else the blocks that it is to take along. Never
            itself: a cycle would keep its feed, and so a request's body, until the next collection.
    """

    feed: Feed
    rows: int
    kind: _Kind
    most_rows: int
    gone: Gone | None
    since: float = field(default_factory=time.monotonic)
    turn: Future["Values | _Followers"] = field(default_factory=Future)

    @property
    def is_abandoned(self) -> bool:
        """Whether its sender has lost patience and gone."""
        return self.gone is not None and time.monotonic() - self.since >= PATIENCE_S and self.gone()


class _Followers(list[_Block]):
    """Blocks that are run along with another one, by its thread."""


class _Slots:
    """Who runs and who waits. Thread-safe.

    A slot goes to the block that has waited longest and may share its run, with those that go along; every other
    time to one that never shares. Those are only woken, and a block that comes at that moment may be faster: for
    runs of microseconds, waiting until the one whose turn it is has the interpreter's lock costs a third of all
    throughput.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self.busy = 0
        self._sharing: deque[_Block] = deque()
        self._lone = 0
        self._is_turn_of_lone = False

    @property
    def waiting(self) -> int:
        """Blocks that wait for a slot."""
        return len(self._sharing) + self._lone

    def enter(self, block: _Block) -> "Values | _Followers":
        """Waits for the block's turn: others that it is to take along, or its outputs if it was taken along."""
        with self._lock:
            if self.busy >= self.slots and block.kind is not None:
                self._sharing.append(block)
            else:
                self._wait_alone()
                self.busy += 1
                return _Followers()
        return block.turn.result()

    def leave(self) -> None:
        """Hands the caller's slot on."""
        with self._lock:
            is_turn_of_lone = self._lone and self._is_turn_of_lone
            if not self._sharing or is_turn_of_lone or self.busy > self.slots:
                self._is_turn_of_lone = False
                self.busy -= 1
                self._freed.notify()
                return
            self._is_turn_of_lone = True
            leader = self._sharing.popleft()
            followers = self._take_followers(leader)
        leader.turn.set_result(followers)

    def _wait_alone(self) -> None:
        self._lone += 1
        while self.busy >= self.slots:
            self._freed.wait()
        self._lone -= 1

    def _take_followers(self, leader: _Block) -> _Followers:
        followers = _Followers()
        rows, others = leader.rows, deque[_Block]()
        for block in self._sharing:
            if block.kind == leader.kind and rows + block.rows <= leader.most_rows:
                followers.append(block)
                rows += block.rows
            else:
                others.append(block)
        self._sharing = others
        return followers


class Engine:
    """Runs blocks of many requests on a model. Thread-safe.

    It lives as long as its model; ``close`` ends its threads after the blocks that have started.

    Args:
        run: From a feed to outputs; called by up to ``slots`` threads at once.
        signature: The model's.
        slots: Concurrent runs.
        block_rows: Rows of one run at most.
        run_watched: The same as ``run`` for somebody who may leave, and then ends; None if runs cannot be ended.
        pressed: Tells after a run whether memory is short, so that runs must become smaller.
    """

    def __init__(
        self,
        run: Callable[[Feed], Values],
        signature: Signature,
        *,
        slots: int,
        block_rows: int,
        run_watched: Callable[[Feed, Gone], Values] | None = None,
        pressed: Callable[[], bool] = lambda: False,
    ) -> None:
        self.signature = signature
        self._whole = frozenset(spec.name for spec in signature.defaults)
        self._run = run
        self._run_watched = run_watched
        self._pressed = pressed
        self._slots = _Slots(slots)
        self.plan = RunPlan(block_rows, slots)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="onnx-serve-slot")

    @property
    def plan(self) -> RunPlan:
        """How blocks are run; a new one holds for the blocks that come after it."""
        return self._plan

    @plan.setter
    def plan(self, plan: RunPlan) -> None:
        if self.signature.row_axis is RowAxis.FIXED:
            plan = replace(plan, block_rows=self.signature.fixed_rows)
        self._plan = plan
        self._slots.slots = plan.slots

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, so that whoever comes next need not wait."""
        return not self._slots.busy

    @property
    def slots(self) -> int:
        """Runs at once."""
        return self._plan.slots

    @property
    def block_rows(self) -> int:
        """Rows of one run at most."""
        return self._plan.block_rows

    @property
    def merges(self) -> bool:
        """Whether small requests may share a run, so that many of them should be let in at once."""
        return self._plan.merges and self.signature.has_rows and self._plan.block_rows > 1

    def map(self, blocks: Iterable[Feed], gone: Gone | None = None) -> Iterator[Values]:
        """The outputs of each block, or of each piece of a longer block, in order.

        At most ``slots + 1`` pieces are decoded ahead of the one that is being waited for, so memory does
        not grow with the number of blocks.

        Args:
            blocks: Feeds, consumed lazily; with rows, of one row or more.
            gone: Tells whether nobody waits for the outputs any more.

        Raises:
            InferenceError: The model failed, or answered with another number of rows.
            OutOfMemory: One record alone needs more memory than there is.
            Abandoned: Nobody waits for the outputs any more.
        """
        pieces = self._pieces(blocks, gone)
        first = next(pieces, None)
        if first is None:
            return
        second = next(pieces, None)
        if second is None:
            yield self._run_block(first)
            return
        ahead: deque[Future[Values]] = deque()
        try:
            for piece in (first, second):
                ahead.append(self._threads.submit(self._run_block, piece))
            for piece in pieces:
                if len(ahead) > self.slots:
                    yield ahead.popleft().result()
                ahead.append(self._threads.submit(self._run_block, piece))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """Ends the engine's threads; blocks that have started finish, others are dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _pieces(self, blocks: Iterable[Feed], gone: Gone | None) -> Iterator[_Block]:
        for block in blocks:
            if not self.signature.has_rows:
                self._rows_for(block, 1)
                yield _Block(block, 0, None, 0, gone)
                continue
            total, fixed = block_rows(block), self.signature.fixed_rows
            rows = self._rows_for(block, total)
            most = fixed * self._plan.runs_in_a_row(-(-total // fixed)) if fixed else rows
            for piece in cut(block, most, self._whole, multiple=fixed or 1):
                yield _Block(piece, block_rows(piece), self._kind(piece, rows), rows, gone)

    def _rows_for(self, block: Feed, rows: int) -> int:
        """Rows of a run for a block's records; refuses a record that cannot fit."""
        fitting = self._plan.block_rows
        if self._plan.record_elements:
            fitting = self._plan.rows_for(_elements(block) // rows)
        return self.signature.fixed_rows or fitting

    def _kind(self, piece: Feed, most_rows: int) -> _Kind:
        if not self._plan.merges or block_rows(piece) >= most_rows or not self._whole.isdisjoint(piece):
            return None
        return tuple(array.shape[1:] for array in piece.values())

    def _run_block(self, block: _Block) -> Values:
        """The outputs of a block once it is its turn, whoever runs it."""
        turn = self._slots.enter(block)
        if not isinstance(turn, _Followers):
            return turn
        try:
            return self._run_together(block, turn)
        finally:
            self._slots.leave()
            self._react_to_pressure()

    def _run_together(self, leader: _Block, waiting: _Followers) -> Values:
        """Runs the blocks together; returns the first one's outputs and gives the others theirs."""
        for block in waiting:
            if block.is_abandoned:
                block.turn.set_exception(Abandoned("the client has gone"))
        followers = [block for block in waiting if not block.turn.done()]
        if not followers:
            return self._run_alone(leader)
        together = [leader, *followers]
        rows = [block.rows for block in together]
        try:
            outputs = self._run_rows(
                merge([block.feed for block in together]), sum(rows), _all_gone(together)
            )
            first, *others = split(outputs, rows)
        except (ServeError, MemoryError):
            # One of them may be at fault; each is to get its own answer.
            for block in followers:
                self._settle(block)
            return self._run_alone(leader)
        except BaseException as ex:
            for block in followers:
                block.turn.set_exception(ex)
            raise
        for block, part in zip(followers, others, strict=True):
            block.turn.set_result(part)
        return first

    def _settle(self, block: _Block) -> None:
        try:
            outputs = self._run_alone(block)
        except BaseException as ex:  # noqa: BLE001  it is raised where the block is waited for
            block.turn.set_exception(ex)
        else:
            block.turn.set_result(outputs)

    def _run_alone(self, block: _Block) -> Values:
        if block.is_abandoned:
            raise Abandoned("the client has gone")
        if not block.rows:
            return self._run_feed(block.feed, block.gone)
        return self._run_rows(block.feed, block.rows, block.gone)

    def _run_rows(self, feed: Feed, rows: int, gone: Gone | None) -> Values:
        """Runs a block; in halves when it needs more memory than there is."""
        if fixed := self.signature.fixed_rows:
            runs = cut(feed, fixed, self._whole, multiple=fixed)
            return join([self._run_checked(run, block_rows(run), gone) for run in runs])
        try:
            return self._run_checked(feed, rows, gone)
        except OutOfMemory:
            if rows == 1:
                raise
            # Records larger than those that were measured say nothing about the others.
            if self._rows_for(feed, rows) == self._plan.block_rows:
                self._shrink(-(-rows // 2), "a run needed more memory than there is")
        halves = cut(feed, -(-rows // 2), self._whole)
        return join([self._run_rows(half, block_rows(half), gone) for half in halves])

    def _run_checked(self, feed: Feed, rows: int, gone: Gone | None) -> Values:
        fixed = self.signature.fixed_rows
        padded = fixed > rows
        outputs = self._run_feed(pad(feed, fixed, self._whole) if padded else feed, gone)
        expected = fixed if padded else rows
        for name, value in outputs.items():
            if row_count(value) != expected:
                raise InferenceError(f'output "{name}" has {row_count(value)} rows for {rows} rows of input')
        return first_rows(outputs, rows) if padded else outputs

    def _run_feed(self, feed: Feed, gone: Gone | None) -> Values:
        if gone is None or self._run_watched is None:
            return self._run(feed)
        return self._run_watched(feed, gone)

    def _react_to_pressure(self) -> None:
        if self._plan.block_rows > 1 and self._pressed():
            self._shrink(-(-self._plan.block_rows // 2), "memory is short")

    def _shrink(self, rows: int, reason: str) -> None:
        """Makes runs smaller from now on."""
        plan = self._plan
        if rows < plan.block_rows and self.signature.row_axis is RowAxis.FREE:
            _log.warning("%s: blocks of %d rows instead of %d from now on", reason, rows, plan.block_rows)
            self.plan = replace(plan, block_rows=rows)


def _all_gone(blocks: list[_Block]) -> Gone | None:
    """Tells whether nobody waits for any of the blocks; None if that is not known of one."""
    gone = [block.gone for block in blocks if block.gone is not None]
    return (lambda: all(left() for left in gone)) if len(gone) == len(blocks) else None


def _elements(feed: Feed) -> int:
    """Elements of the tensors in a feed; other values count nothing."""
    return sum(getattr(value, "size", 0) for value in feed.values())
