"""A real PostgreSQL server for tests: Debian's, in a folder of its own, reached through a socket in that folder."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest


class Server:
    """A server that the tests start, stop and kill as they like."""

    def __init__(self):
        found = shutil.which("initdb") or next(
            iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1:]), None
        )
        if found is None:
            pytest.skip("PostgreSQL's server is not installed: apt-get install postgresql")
        self._binaries = Path(found).resolve().parent
        # Not below pytest's folder: that is closed to the user the server runs as, and too long for a socket's name.
        self.folder = Path(tempfile.mkdtemp(prefix="makel-pg-"))
        self._schemas = 0
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(self.folder, "postgres", "postgres")
        self._run("initdb", "--no-sync", "--auth=trust", "--username=makel", "--encoding=UTF8", "--locale=C")
        self.start()

    def start(self):
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "--silent", "--log", self.folder / "log", "--options", options)

    def stop(self, mode="fast"):
        self._run("pg_ctl", "stop", "--wait", "--silent", "--mode", mode)

    def database(self):
        """The URL of new empty room for tables: a schema, which costs a hundredth of a database."""
        self._schemas += 1
        server = f"postgresql://makel@/postgres?host={self.folder}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA room{self._schemas}")
        return f"{server}&options=-csearch_path%3Droom{self._schemas}"

    def remove(self):
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)  # its last processes may remove files themselves

    def _run(self, program, *arguments):
        command = [self._binaries / program, *arguments, "--pgdata", self.folder / "data"]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", *command]
        done = subprocess.run(
            [str(part) for part in command],
            cwd="/",
            stdout=subprocess.DEVNULL,  # a pipe would stay open in the server
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{program} failed with code {done.returncode}; see {self.folder}/log"
