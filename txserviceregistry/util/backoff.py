"""How long to wait before the next try: nothing at first, then longer and longer, never two clients in step."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """
    The delays between tries that fail: the first is zero, the next ones double from *base* up to *maximum*, each with
    a jitter that takes away up to half of it.

    :param base: seconds of the first delay that is not zero.
    :param maximum: seconds that no delay exceeds.
    :param random: returns numbers from 0 to 1.
    """

    def __init__(self, base: float, maximum: float, random: Callable[[], float]) -> None:
        self._base = base
        self._maximum = maximum
        self._random = random
        self.failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        self.failures += 1
        if self.failures == 1:
            return 0.0
        # A failure that lasts for years must not end in an overflow.
        full = min(self._maximum, self._base * 2.0 ** min(self.failures - 2, 32))
        return full * (1.0 - 0.5 * self._random())

    def reset(self) -> None:
        """Begin again: the last try succeeded."""
        self.failures = 0
