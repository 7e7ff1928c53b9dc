"""How a process of ours is started: our own interpreter, one of our modules, nothing of the current folder."""

import sys

__all__ = ["module_command"]


def module_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line of ``python -P -m module``.

    ``-P``: ``-m`` alone searches the current folder before the library, so a ``structlog.py`` beside a configuration
    would be run. A plug-in is found where it is installed, or on ``PYTHONPATH``.
    """
    return (sys.executable, "-P", "-m", module, *arguments)
