"""Calls of compiled functions, shared out between PyTorch's threads: they hold no lock of Python's."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch

WORTH_A_THREAD = 4_000_000  # multiplications; with fewer, handing work over costs more than it saves


def share_out(function: Callable[..., int], arguments: Sequence[object], jobs: int, work: int) -> None:
    """Call `function(*arguments, first, last)` for parts of its `jobs`, which are `work` multiplications in all.

    Raises `MemoryError` where it says that it had none.
    """
    threads = min(torch.get_num_threads(), jobs) if work > WORTH_A_THREAD else 1
    if threads <= 1:
        failed = function(*arguments, 0, jobs)
    else:
        bounds = [jobs * thread // threads for thread in range(threads + 1)]
        failed = any(list(_pool(threads).map(lambda part: function(*arguments, *part), pairwise(bounds))))
    if failed:
        raise MemoryError


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="offmarl")
