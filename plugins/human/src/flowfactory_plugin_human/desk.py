"""What lies before people: questions that wait for answers, safe to use from several threads. Imports no torch.

Several pages may be open. A question is shown to one of them; to another only when that one has had it for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_urlsafe
from threading import Condition
from time import monotonic
from typing import Any

import attrs

LEASE = 120.0
"""Seconds after which a question that a page was given is offered to others."""


class NoAnswer(ValueError):
    """What a page says answers nothing."""


@attrs.define(eq=False)
class Task:
    """One question.

    kind: "grade", answered by a number below `levels`; or "order", by the numbers of pictures from the best on, the
    rest being equal. `None` answers that there is nothing to say. pictures: PNG files, those given first.
    """

    kind: str
    question: str
    prompt: str
    given: Sequence[bytes]
    shown: Sequence[bytes]
    levels: int = 0
    name: str = attrs.field(factory=lambda: token_urlsafe(9))
    answered: bool = False
    answer: Any = None
    page: str = ""
    since: float = 0.0

    def check(self, answer: Any) -> None:
        """Raises:
        NoAnswer: it does not answer this question.
        """
        if answer is None:
            return
        if self.kind == "grade" and type(answer) is int and 0 <= answer < self.levels:
            return
        numbers = isinstance(answer, list) and all(type(n) is int and 0 <= n < len(self.shown) for n in answer)
        if self.kind == "order" and numbers and len({*answer}) == len(answer):
            return
        raise NoAnswer(f"that does not answer a question of kind {self.kind}")

    def as_json(self) -> dict[str, Any]:
        """What a page shows."""
        counts = {"given": len(self.given), "shown": len(self.shown), "levels": self.levels}
        return {"name": self.name, "kind": self.kind, "question": self.question, "prompt": self.prompt, **counts}


class Desk:
    """Questions that wait, in order."""

    def __init__(self) -> None:
        self._waiting: dict[str, Task] = {}
        self._changed = Condition()

    def ask(self, tasks: Sequence[Task], seconds: float) -> bool:
        """Wait until all are answered; whether they are. Those that are not are taken away."""
        end = monotonic() + seconds
        with self._changed:
            self._waiting |= {task.name: task for task in tasks}
            self._changed.notify_all()
            try:
                while not all(task.answered for task in tasks) and (left := end - monotonic()) > 0:
                    self._changed.wait(left)
            finally:
                for task in tasks:
                    self._waiting.pop(task.name, None)
        return all(task.answered for task in tasks)

    def next(self, page: str, seconds: float = 0.0) -> tuple[Task | None, int]:
        """A question for a page, and how many wait; waits so long for one."""
        end = monotonic() + seconds
        with self._changed:
            while True:
                now = monotonic()
                for task in self._waiting.values():
                    if task.page in ("", page) or now - task.since > LEASE:
                        task.page, task.since = page, now
                        return task, len(self._waiting)
                if end <= now:
                    return None, len(self._waiting)
                self._changed.wait(min(end - now, 1.0))

    def find(self, name: str) -> Task | None:
        """A question that waits."""
        with self._changed:
            return self._waiting.get(name)

    def answer(self, name: str, answer: Any) -> bool:
        """Take an answer; false where the question is gone.

        Raises:
            NoAnswer: it is none.
        """
        with self._changed:
            task = self._waiting.get(name)
            if task is None:
                return False
            task.check(answer)
            task.answer, task.answered = answer, True
            del self._waiting[name]
            self._changed.notify_all()
            return True
