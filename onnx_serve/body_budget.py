"""Which bodies may come in, judged by the memory that is left for them."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["UNASKED_BYTES", "UNLIMITED", "BodyBudget"]

# Smaller bodies, and smaller pieces of a chunked one, are let in unasked: looking at the machine's memory
# takes longer than receiving them.
UNASKED_BYTES = 1 << 20
_MIB = 1 << 20
# A look takes 0.7 ms of the one thread that receives (two control groups above the process's own), a body of
# 2 MB a quarter of that. An older figure serves for what is small beside it.
_LOOK_S = 0.1
_SMALL_PART = 8


@dataclass
class BodyBudget:
    """Admits bodies before they are received; for the I/O thread only.

    A body takes its size of memory while it is held in memory, or in a temporary directory that is a tmpfs. What has been announced and has not yet come is not yet
    missing from the memory that the system reports, so it is counted here.

    Attributes:
        available: Tells how many bytes of memory are left now.
        reserve_bytes: What must stay free beside all bodies.
        spool_is_memory: Whether the temporary directory lives in memory.
        clock: Tells the seconds that have passed since some moment.
    """

    available: Callable[[], int]
    reserve_bytes: int
    spool_is_memory: bool
    clock: Callable[[], float] = time.monotonic
    _announced: int = field(default=0, init=False)
    # At the last look, less all that was let in since: what has come of it, the figure does not show.
    _left: int = field(default=0, init=False)
    _looked_at: float = field(default=float("-inf"), init=False)

    def cost(self, length: int, *, spooled: bool) -> int:
        """Bytes of memory that a body of that length takes."""
        return length if self.spool_is_memory or not spooled else 0

    def admit(self, cost: int) -> str | None:
        """Counts a body in; tells why it cannot come instead, if there is no room.

        Args:
            cost: Bytes that it will take; to be given back by ``arrived`` as it comes, or ends.
        """
        if cost > UNASKED_BYTES:
            if _SMALL_PART * cost > self._left or self.clock() - self._looked_at > _LOOK_S:
                self._left = self.available() - self.reserve_bytes - self._announced
                self._looked_at = self.clock()
            if cost > self._left:
                return (
                    f"the request body needs {cost // _MIB} MiB of memory, and {max(self._left, 0) // _MIB} MiB "
                    f"are left for it; send less at once"
                )
        self._left -= cost
        self._announced += cost
        return None

    def arrived(self, cost: int) -> None:
        """Takes out what has come, and so shows in the system's memory, or will not come."""
        self._announced -= cost


UNLIMITED = BodyBudget(lambda: sys.maxsize, 0, spool_is_memory=False)
