"""A lock that is given in the order it was asked for, so that ten users of one model take turns."""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """First come, first served; a plain lock may go to the thread that has just released it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    @property
    def queue_length(self) -> int:
        """How many hold the lock or wait for it."""
        return len(self._queue)

    def __enter__(self) -> None:
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._queue[0] is ticket)
            except BaseException:
                # Interrupted while waiting: nobody may wait for this ticket for ever.
                self._queue.remove(ticket)
                self._changed.notify_all()
                raise

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()
