"""Small real HTTP servers on this machine: one that is told things, and one that speaks what the hub's own client needs."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """A request: its method and path, its body, who asked, and of whom."""

    what: str
    body: bytes
    authorization: str
    host: str


Answer = tuple[int, Any]


@contextmanager
def serving(answer: Callable[[Asked], Answer]) -> Iterator[tuple[str, list[Asked]]]:
    """A server's address, and the requests that it has had so far."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(
                Asked(f"{self.command} {self.path}", body, self.headers.get("Authorization", ""), self.headers["Host"])
            )
            code, data = answer(asked[-1])
            text = json.dumps(data).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_HEAD = handle_any

        def log_message(self, *arguments: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Hub:
    """A hub with one account, `me`: repositories with their privacy and files. `refuses` answers every request with that."""

    def __init__(self, refuses: int = 0):
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self._refuses = refuses

    def __call__(self, asked: Asked) -> Answer:
        _, _, path = asked.what.partition(" ")
        path = path.partition("?")[0]
        if self._refuses:
            return self._refuses, {"error": "no"}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": []}
        if path == "/api/repos/create":
            wish = json.loads(asked.body)
            name = f"{wish.get('organization') or 'me'}/{wish['name']}"
            self.private[name] = wish.get("private", wish.get("visibility") == "private")
            return 200, {"url": f"http://{asked.host}/{name}", "id": name, "name": name}
        if path.endswith("/preupload/main"):
            files = json.loads(asked.body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, asked.body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"http://{asked.host}/me/balls/commit/1", "commitOid": "1", "success": True}
        return 200, {"id": "me/balls", "sha": "0", "siblings": [], "private": True}
