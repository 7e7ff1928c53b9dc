"""The `fedfleet` command: one file per command group, Typer and Rich.

What lives here parses the command line and the configuration, starts processes and shows what they do. Decisions of
the protocol, the server or the vehicle do not live here.
"""
