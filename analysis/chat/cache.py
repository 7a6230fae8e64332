"""Replies on disk, by the content of their requests: nothing is asked, or paid for, twice.

One SQLite file, which is whole after any kill: each reply is a transaction of its own.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from analysis.chat.request import Reply, Request


class Cache:
    """Replies by key, see `request.key_of`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("create table if not exists replies (key text primary key, request text, reply text)")

    def get(self, key: str) -> Reply | None:
        found = self._connection.execute("select reply from replies where key = ?", (key,)).fetchone()
        return Reply(**json.loads(found[0])) if found else None

    def put(self, key: str, request: Request, reply: Reply) -> None:
        row = (key, json.dumps(request.to_json()), json.dumps(asdict(reply)))
        with self._connection:
            self._connection.execute("insert or replace into replies values (?, ?, ?)", row)


@contextmanager
def opened(path: Path) -> Iterator[Cache]:
    """The cache in this file, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    try:
        yield Cache(connection)
    finally:
        connection.close()
