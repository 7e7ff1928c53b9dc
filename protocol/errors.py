"""The two kinds of error: the peer erred, or our own user did."""

__all__ = ["PeerError", "UsageError"]


class PeerError(Exception):
    """A message from another party is not acceptable: it is dropped and counted under ``reason``.

    ``reason`` is a short kebab-case code (a metric label), ``detail`` says what, expected, got and who.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the reason and the detail; ``str()`` joins them."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class UsageError(Exception):
    """The person or program that uses us asked for something impossible: one clear line, exit code 2."""
