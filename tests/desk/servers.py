"""A private PostgreSQL server for tests: a cluster of its own in a temporary folder, reached by a socket there.

PostgreSQL refuses to run as root, so that its processes run as another user if the tests do.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/bin", "/usr/bin")


def find_binaries() -> Path | None:
    """The newest folder with initdb and pg_ctl; None if there is none."""
    found = [path for place in PLACES for path in sorted(Path("/").glob(f"{place[1:]}/initdb"), reverse=True)]
    found += [Path(path) for path in [shutil.which("initdb")] if path]
    return next((path.parent for path in found if (path.parent / "pg_ctl").exists()), None)


def server_user() -> str | None:
    """The user that a server can run as; None if there is none but root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid()).pw_name
    known = {one.pw_name for one in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


@contextmanager
def postgresql(home: Path) -> Iterator[str]:
    """Start a server in a new folder, and yield the URL of its database."""
    binaries, user = find_binaries(), server_user()
    assert binaries is not None and user is not None
    account = pwd.getpwnam(user)
    data, sockets = home / "data", home / "sockets"
    for folder in (home, data, sockets):
        folder.mkdir(exist_ok=True)
        if os.getuid() == 0:
            os.chown(folder, account.pw_uid, account.pw_gid)

    def call(*words: object) -> None:
        given = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C"}
        made = subprocess.run(
            list(map(str, words)), env=environment, cwd=home, capture_output=True, text=True, timeout=120, **given
        )
        assert made.returncode == 0, made.stdout + made.stderr

    call(binaries / "initdb", "-D", data, "-U", "desk", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{sockets}'"
    call(binaries / "pg_ctl", "-D", data, "-o", options, "-l", home / "log", "-w", "start")
    try:
        yield f"postgresql://desk@/postgres?host={quote(str(sockets), safe='')}"
    finally:
        call(binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
