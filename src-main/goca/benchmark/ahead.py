"""Reading ahead and finishing behind: threads prepare the next items and finish the last ones, all in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 2


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result], ahead: int) -> Generator[Result, None, None]:
    """read(item) for each item, in order, computed by threads.

    ahead   maximum number of items that are read before they are requested; 0: read on request, in this thread

    An error of `read` is raised when its item is due. Close the iterator to stop early.
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


class Behind:
    """Calls made in order by one thread, while the caller continues.

    most   maximum number of unfinished calls; a further one waits for the first. 0: calls are made directly

    An error of a call is raised by a later one, or at the end of the `with` block. The block ends when all calls are
    made, also if it is left with an error.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.unfinished: deque[Future[Any]] = deque()

    def __enter__(self) -> Behind:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="goca-count")
        return self

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> None:
        if self.most == 0:
            function(*arguments)
            return
        while len(self.unfinished) >= self.most:
            self.unfinished.popleft().result()
        self.unfinished.append(self.pool.submit(function, *arguments))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.pool.shutdown()
        with suppress(Exception) if kind else nullcontext():
            for each in self.unfinished:
                each.result()
