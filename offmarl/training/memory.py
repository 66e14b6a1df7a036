"""The allocator's settings for training on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's mallopt(3)
_LARGEST_MMAP_THRESHOLD = 1 << 25  # glibc refuses more


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensor instead of returning it to the kernel.

    A gradient step allocates and frees the same megabytes again and again, and each page that comes back from
    the kernel is cleared first: measured 1,400 page faults per TD3+BC update; without them CQL ran 1.3 to
    1.7 times faster. Returns whether the C library took the settings; only glibc has them.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
