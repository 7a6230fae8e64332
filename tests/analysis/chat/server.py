"""A server of chat completions on this machine, whose behaviour a test writes down."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], str]
"""State, headers, body."""


def completion(text: str, read: int = 10, written: int = 5) -> Answer:
    usage = {"prompt_tokens": read, "completion_tokens": written}
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})


class Server:
    """`script(body, n)` says what is answered to the n-th request with this body."""

    def __init__(self, script: Callable[[dict[str, Any], int], Answer]) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered: list[str] = []
        """Last messages of requests that were answered with 200."""
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    n = server.bodies.count(body)
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                state, headers, said = server.script({**body, "path": self.path}, n)
                try:
                    self.send_response(state)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(said.encode())
                except OSError:
                    return  # who asked is gone
                if state == 200:
                    with server._lock:
                        server.answered.append(body["messages"][-1]["content"])

            def do_GET(self) -> None:
                """Nobody should: it is what a redirect leads to."""
                with server._lock:
                    server.headers.append(dict(self.headers))
                self.send_response(404)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"


@contextmanager
def serving(script: Callable[[dict[str, Any], int], Answer]) -> Iterator[Server]:
    server = Server(script)
    thread = threading.Thread(target=server._http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server._http.shutdown()
        thread.join()
        server._http.server_close()


def said(body: dict[str, Any]) -> str:
    """The last message of a request."""
    return body["messages"][-1]["content"]
