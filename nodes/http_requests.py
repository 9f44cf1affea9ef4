"""Requests that may not be what they say: who asks, in which content type, with which body.

A page of somebody else, open in the same browser, can send requests to ComfyUI; the browser tells where they come from. What
changes something is refused unless it comes from ComfyUI's own page, or from no page at all. ComfyUI checks that too, but only
for a server that is asked as localhost, and not with --enable-cors-header.
"""

import json
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

MOST_BODY = 1 << 16  # bytes of a JSON body
JSON, FORM = "application/json", "multipart/form-data"


class Refusal(Exception):
    """A request is answered with this status and sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def check_origin(request: web.Request) -> None:
    """Refusal where a browser says that another page has sent this.

    Sec-Fetch-Site cannot be forged by a page, and is right behind a proxy as well; it is missing on plain http in a network.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    is_ours = site in ("same-origin", "none") if site is not None else origin is None or _host_of(origin) == _host(request)
    if not is_ours:
        raise Refusal(403, "this request comes from another page than ComfyUI's own")


def check_content_type(request: web.Request, wanted: str) -> None:
    """Refusal where the body is of another type, or compressed."""
    if request.content_type != wanted:
        raise Refusal(415, f"the content type must be {wanted}")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Refusal(415, "the body must not be compressed")


async def json_body(request: web.Request, known: set[str]) -> dict[str, Any]:
    """The object in the body, which has no other fields than these; Refusal where it is none."""
    data = b""
    while (chunk := await request.content.read(MOST_BODY)) and len(data) <= MOST_BODY:
        data += chunk
    if len(data) > MOST_BODY:
        raise Refusal(413, f"the body must not be longer than {MOST_BODY} bytes")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not JSON") from None
    if not isinstance(body, dict) or not body.keys() <= known:
        raise Refusal(400, f"the body must be an object with no other fields than {', '.join(sorted(known))}")
    return body


def _host(request: web.Request) -> str:
    return request.headers.get("Host", "").lower()


def _host_of(origin: str) -> str | None:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None
