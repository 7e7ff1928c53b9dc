"""Self-selection: every vehicle decides by a public hash whether it takes part, and anyone can check it."""

from hashlib import sha256

__all__ = ["draw"]

_BYTES = 8


def draw(seed: int, round_: int, vehicle: str) -> float:
    """Return the vehicle's draw in [0, 1) for a round: SHA-256 of ``seed:round:vehicle``, first 53 of its bits.

    A vehicle is selected when its draw is below the share of the plan. Raising the share keeps those selected.
    """
    digest = sha256(f"{seed}:{round_}:{vehicle}".encode()).digest()
    return (int.from_bytes(digest[:_BYTES], "big") >> 11) / 2.0**53
