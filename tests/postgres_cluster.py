"""A private PostgreSQL for tests: its own folder, a Unix socket, never root, gone afterwards."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

START_S = 60
USER = "fedfleet"


def binaries() -> Path | None:
    """The folder of the newest installed PostgreSQL; Debian keeps its programs outside of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


class Cluster:
    """A running server. `database` makes a new, empty database and returns its URL."""

    def __init__(self, programs: Path) -> None:
        # not below pytest's folder, which only its owner may enter
        self.folder = Path(tempfile.mkdtemp(prefix="fedfleet-postgres-"))
        self._programs, self._count = programs, 0
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            who = next(one for one in pwd.getpwall() if one.pw_name in {"postgres", "nobody"})
            self._as = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
            os.chown(self.folder, who.pw_uid, who.pw_gid)
        data = self.folder / "data"
        self._run("initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c max_connections=40"
        log = self.folder / "log"
        self._run("pg_ctl", "-D", data, "-o", options, "-l", log, "-w", "-t", START_S, "start")

    def database(self) -> str:
        """A new database's URL."""
        self._count += 1
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE store_{self._count}")
        return f"postgresql://{USER}@/store_{self._count}?host={self.folder}"

    def connect(self, database: str) -> psycopg.Connection:
        """A session outside of any transaction."""
        told = {"host": str(self.folder), "user": USER, "dbname": database}
        return psycopg.connect(**told, autocommit=True)

    def stop(self) -> None:
        """End it at once and remove everything."""
        try:
            self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "stop")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *words: object) -> None:
        # output goes nowhere: a server that pg_ctl starts would keep a pipe open
        command = [str(self._programs / program), *map(str, words)]
        subprocess.run(
            command,
            check=True,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=2 * START_S,
            **self._as,  # type: ignore[call-overload]
        )
