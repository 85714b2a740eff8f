"""Which bodies may come in, judged by the memory that is left for them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["UNASKED_BYTES", "UNLIMITED", "BodyBudget"]

# Smaller bodies, and smaller pieces of a chunked one, are let in unasked: looking at the machine's memory
# takes longer than receiving them.
UNASKED_BYTES = 1 << 20
_MIB = 1 << 20


@dataclass
class BodyBudget:
    """Admits bodies before they are received; for the I/O thread only.

    A body takes memory while it is held in memory (twice its size at the end, when its pieces are joined), and
    in the temporary directory where that is a tmpfs. What has been announced and has not yet come is not yet
    missing from the memory that the system reports, so it is counted here.

    Attributes:
        available: Tells how many bytes of memory are left now.
        reserve_bytes: What must stay free beside all bodies.
        spool_is_memory: Whether the temporary directory lives in memory.
    """

    available: Callable[[], int]
    reserve_bytes: int
    spool_is_memory: bool
    _announced: int = field(default=0, init=False)

    def cost(self, length: int, *, spooled: bool) -> int:
        """Bytes of memory that a body of that length takes."""
        if spooled:
            return length if self.spool_is_memory else 0
        return 2 * length

    def admit(self, cost: int) -> str | None:
        """Counts a body in; tells why it cannot come instead, if there is no room.

        Args:
            cost: Bytes that it will take; to be given back by ``arrived`` as it comes, or ends.
        """
        if cost > UNASKED_BYTES:
            left = self.available() - self.reserve_bytes - self._announced
            if cost > left:
                return (
                    f"the request body needs {cost // _MIB} MiB of memory, and {max(left, 0) // _MIB} MiB "
                    f"are left for it; send less at once"
                )
        self._announced += cost
        return None

    def arrived(self, cost: int) -> None:
        """Takes out what has come, and so shows in the system's memory, or will not come."""
        self._announced -= cost


UNLIMITED = BodyBudget(lambda: sys.maxsize, 0, spool_is_memory=False)
