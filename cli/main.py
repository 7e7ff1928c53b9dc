"""Entry point of the ``fedfleet`` command: puts the groups together and turns errors into one line."""

import signal
import sys

import typer

from fedfleet.cli import agent, broker, closed_loop, compare, demo, inspect, replay, scenarios, server, status
from fedfleet.cli.terminal import Terminal, survive_encodings
from fedfleet.protocol.errors import PeerError, UsageError

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedfleet",
    help="Federated learning for autonomous-vehicle fleets over MQTT: raw driving data never leave the vehicle.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
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
    except (UsageError, PeerError) as error:
        Terminal(stderr=True).say(f"fedfleet: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        Terminal(stderr=True).say("fedfleet: stopped")
        sys.exit(130)


if __name__ == "__main__":
    main()
