"""Tells signals of a KUKSA databroker: ``python -m fedfleet.vehicle_agent.kuksa --address HOST:PORT Vehicle.Speed …``.

One JSON object a line, as ``conditions.py`` reads them. A program of its own: it needs the optional package
kuksa-client (extra ``kuksa``) and else the standard library alone, so that this very file also runs by an interpreter
of another environment, where the package's pins would not go with the agent's.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["main", "plain"]


def plain(value: object) -> bool | int | float | str | None:
    """Return a value as a signal; None for none, for a number that is not finite and for lists."""
    if isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def told(updates: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each update that the databroker sent: path -> data point, or None."""
    for update in updates:
        signals = {path: plain(getattr(point, "value", None)) for path, point in update.items()}
        yield json.dumps(signals)


def main(argv: Sequence[str] | None = None) -> int:
    """Follow the signals until the databroker or the reader is gone; returns 1, with one line, or 0."""
    parser = argparse.ArgumentParser(description="Tells signals of a KUKSA databroker, a JSON object a line.")
    parser.add_argument(
        "--address", required=True, help="HOST:PORT; {vehicle} in it is the id of the vehicle that asks"
    )
    parser.add_argument("--ca-file", type=Path, help="certificate that signed the databroker's: use TLS")
    parser.add_argument("--token-file", type=Path, help="file with the token for the databroker")
    parser.add_argument("signals", nargs="+", metavar="SIGNAL", help="VSS name, for example Vehicle.Speed")
    given = parser.parse_args(argv)
    address = given.address.replace("{vehicle}", os.environ.get("FEDFLEET_VEHICLE", ""))
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--address {address}: expected HOST:PORT")
    try:
        from kuksa_client.grpc import VSSClient, VSSClientError
    except ImportError:
        return _sorry("the package kuksa-client is not installed: pip install 'fedfleet[kuksa]'")
    try:
        token = given.token_file.read_text(encoding="ascii").strip() if given.token_file else None
        # What it says at the start is not asked for: a connection that cannot be made is told by the subscription.
        more = {"root_certificates": given.ca_file, "token": token, "ensure_startup_connection": False}
        with VSSClient(host, int(port), **more) as client:
            for line in told(client.subscribe_current_values(given.signals)):
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter complains when it ends
        return 0
    except (OSError, VSSClientError) as error:
        return _sorry(f"databroker {address}: {error}")
    return _sorry(f"databroker {address}: it has ended the subscription")


def _sorry(text: str) -> int:
    sys.stderr.write(f"kuksa: {text[:500]}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
