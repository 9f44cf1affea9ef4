"""Requests as no library would send them: any path, any headers, any body, byte for byte."""

import json
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

PATIENCE_SECONDS = 30


class Answer(NamedTuple):
    """What came back; the status 0 where the server closed the connection without a word."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(url: str, method: str, path: str | bytes, body: Any = b"", **headers: str) -> Answer:
    """Send it and read the answer. A body that is no bytes goes as JSON; `_` in the names of headers stands for a dash."""
    address = urlsplit(url)
    if not isinstance(body, bytes):
        body, headers = json.dumps(body).encode(), {"Content_Type": "application/json", **headers}
    sent = {"Host": address.netloc, "Connection": "close", "Content-Length": str(len(body))}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    line = method.encode() + b" " + (path if isinstance(path, bytes) else path.encode()) + b" HTTP/1.1\r\n"
    with socket.create_connection((address.hostname, address.port), PATIENCE_SECONDS) as connection:
        connection.sendall(line + head.encode("latin-1") + b"\r\n" + body)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    head, _, rest = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
    if fields.get("transfer-encoding") == "chunked":
        rest = _joined(rest)
    return Answer(int(first.split()[1]) if first else 0, fields, rest)


def form(files: dict[str, bytes], boundary: str = "----part") -> tuple[bytes, str]:
    """A multipart/form-data body of these files, and its content type."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files.items()
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _joined(chunked: bytes) -> bytes:
    """The body of an answer that came in pieces with their sizes."""
    body = b""
    while chunked:
        size, _, chunked = chunked.partition(b"\r\n")
        body, chunked = body + chunked[: int(size, 16)], chunked[int(size, 16) + 2 :]
    return body
