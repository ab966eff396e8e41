"""Reading ahead: the next items are prepared by threads while the current one is worked on, and come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 2


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result], ahead: int) -> Generator[Result, None, None]:
    """read(item) for each item, in their order, whichever is done first.

    ahead   how many items are read before they are asked for, at most; 0: each when it is asked for, in this thread
    What `read` raises is raised when its item's turn comes. Close the iterator to stop early.
    """
    if ahead == 0:
        yield from map(read, items)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(min(THREADS, ahead), thread_name_prefix="goca-read")
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
