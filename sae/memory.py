"""Memory that is used again instead of given back.

glibc maps every block of more than 32 MiB anew and returns it when it is freed. A step that makes and drops
matrices of hundreds of megabytes then spends much of its time on page faults: up to half of a dense one.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # mallopt(3)
NEVER, MAPS = 2**31 - 1, 65536
LARGEST_MAPPED = 32 << 20  # what the thresholds adapt themselves to as long as nobody sets them


@contextmanager
def reused() -> Iterator[None]:
    """Within this context freed memory stays with the process, for whatever comes next; after it, it goes back. Does
    nothing where the C library is not glibc."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, MAPS)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MAPPED)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MAPPED)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
