"""Entry point of the ``fedfleet`` command: puts the groups together and turns errors into one line."""

import signal
import sys
from typing import Annotated

import typer

from fedfleet.cli import agent, broker, closed_loop, compare, demo, inspect, replay, scenarios, server, status
from fedfleet.cli.mistakes import Mistakes
from fedfleet.cli.options import ConfigFile
from fedfleet.cli.terminal import Terminal, survive_encodings
from fedfleet.cli.versions import versions
from fedfleet.models import extras
from fedfleet.protocol.errors import PeerError, UsageError

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedfleet",
    help="Federated learning for autonomous-vehicle fleets over MQTT: raw driving data never leave the vehicle.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        told = versions()
        python, own = told.pop("python"), told.pop("fedfleet", "not installed")
        parts = ", ".join(f"{name} {number}" for name, number in told.items())
        Terminal().say(f"fedfleet {own} (Python {python}; {parts})")
        raise typer.Exit


@app.callback()
def fedfleet(
    config: ConfigFile = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions, and end.")
    ] = False,
) -> None:
    """Federated learning for autonomous-vehicle fleets over MQTT: raw driving data never leave the vehicle."""
    del config, version  # the commands find the configuration in their context


app.command("broker")(broker.broker)
app.add_typer(server.app, name="server")
app.command("agent")(agent.agent)
app.command("fleet")(agent.fleet)
app.command("demo")(demo.demo)
app.command("compare")(compare.compare)
app.command("replay")(replay.replay)
app.command("closed-loop")(closed_loop.closed_loop)
app.command("inspect")(inspect.inspect)
app.command("status")(status.status)
app.add_typer(scenarios.app, name="scenarios")


def main() -> None:
    """Run the command; a mistake of the user or a peer is one line on stderr and exit code 2.

    SIGTERM ends it as Ctrl-C does, so that it stops what it has started; exit code 143.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    survive_encodings()
    try:
        app()
    except Mistakes as error:
        Terminal(stderr=True).say_all(f"fedfleet: {line}" for line in error.lines)
        sys.exit(2)
    except (UsageError, PeerError) as error:
        Terminal(stderr=True).say(f"fedfleet: {error}")
        sys.exit(2)
    except ImportError as error:
        told = extras.lacking(error) or f"cannot import {error.name or 'a module'}: {error}"
        Terminal(stderr=True).say(f"fedfleet: {told}")
        sys.exit(2)
    except KeyboardInterrupt:
        Terminal(stderr=True).say("fedfleet: stopped")
        sys.exit(130)


if __name__ == "__main__":
    main()
