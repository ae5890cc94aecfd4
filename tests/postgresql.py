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
        self._databases = 0
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
        """The URL of a new empty database."""
        self._databases += 1
        name = f"makel{self._databases}"
        with psycopg.connect(f"postgresql://makel@/postgres?host={self.folder}", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://makel@/{name}?host={self.folder}"

    def remove(self):
        self.stop()  # in an orderly way: a server that was cut short may still write while its folder is removed
        shutil.rmtree(self.folder)

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
