"""A lock that is given in the order it was asked for, so that ten users of one model take turns."""

from __future__ import annotations

import threading
from types import TracebackType


class FairLock:
    """First come, first served; a plain lock may go to the thread that has just released it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_ticket, self._serving = 0, 0
        self._given_up: set[int] = set()

    @property
    def queue_length(self) -> int:
        """How many hold the lock or wait for it."""
        return self._next_ticket - self._serving - len(self._given_up)

    def __enter__(self) -> None:
        with self._changed:
            ticket = self._next_ticket
            self._next_ticket += 1
            try:
                self._changed.wait_for(lambda: self._serving == ticket)
            except BaseException:
                # Interrupted while waiting: nobody may wait for this ticket for ever.
                self._given_up.add(ticket)
                self._skip_given_up()
                raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._serving += 1
            self._skip_given_up()

    def _skip_given_up(self) -> None:
        while self._serving in self._given_up:
            self._given_up.discard(self._serving)
            self._serving += 1
        self._changed.notify_all()
