"""Where time is measured in the server, without its parts reading a clock: ``with watch("fold"): …``."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

__all__ = ["Step", "Watch", "stopwatch", "unwatched"]

Step = Literal["commit", "fold", "gate"]
Watch = Callable[[Step], AbstractContextManager[None]]


def unwatched(_step: Step) -> AbstractContextManager[None]:
    """Measure nothing."""
    return nullcontext()


def stopwatch(clock: Callable[[], float], note: Callable[[Step, float], None]) -> Watch:
    """Return a watch that notes the seconds of every step, also of one that raises."""

    @contextmanager
    def watch(step: Step) -> Iterator[None]:
        begun = clock()
        try:
            yield
        finally:
            note(step, clock() - begun)

    return watch
