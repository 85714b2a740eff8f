"""How the process keeps memory between requests.

A body of some megabytes is decoded through several buffers of its size. By default glibc maps such buffers
anew for each request and gives every thread an arena of its own, so that a server with dozens of threads
spends a third of a large request on page faults and holds hundreds of megabytes that no request uses. One
arena that keeps a bounded amount at its top is faster and smaller; measured in docs/decisions/0003.
"""

import ctypes
import gc
import os

__all__ = ["release", "tune"]

# Parameters of mallopt(3), from malloc.h of glibc: https://man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MIB = 1 << 20


def release() -> None:
    """Gives memory that nothing uses back to the system; a heap keeps some of it otherwise."""
    gc.collect()
    # https://man7.org/linux/man-pages/man3/malloc_trim.3.html, of glibc.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def tune(memory_limit_bytes: int) -> None:
    """Sets up the allocator of this process; to be called before threads are started and pyarrow is imported.

    What the environment sets already (``MALLOC_ARENA_MAX``, ``ARROW_DEFAULT_MEMORY_POOL``, ...) stays. Without
    glibc only pyarrow is set up.

    Args:
        memory_limit_bytes: The container's; at most a sixteenth of it is kept between requests.
    """
    # Arrow's own allocator keeps what it frees: twice a body's size for each thread.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    kept = min(max(memory_limit_bytes // 16, 8 * _MIB), 128 * _MIB)
    for parameter, variable, value in (
        (_M_ARENA_MAX, "MALLOC_ARENA_MAX", 1),
        (_M_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", kept),
        (_M_TOP_PAD, "MALLOC_TOP_PAD_", min(kept // 4, 16 * _MIB)),
        (_M_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", min(kept, 16 * _MIB)),
    ):
        if variable not in os.environ:
            mallopt(parameter, value)
