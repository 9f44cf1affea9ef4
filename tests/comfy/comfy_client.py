"""What a browser does: queue a graph over POST /prompt and follow it on the websocket until it is over."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

LARGEST_MESSAGE = 1 << 26
Message = dict[str, Any]


@dataclass
class Outcome:
    """How a queued graph ended. `status` is success, error, interrupted, or refused (by validation, before it ran)."""

    status: str = "success"
    error: str = ""
    error_node: str = ""
    seconds: float = 0.0
    messages: list[Message] = field(default_factory=list)
    previews: int = 0
    outputs: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[Message]:
        """The data of all messages of this kind, in order."""
        return [message["data"] for message in self.messages if message["type"] == kind]


def queue(
    url: str,
    prompt: dict[str, Any],
    *,
    workflow: dict[str, Any] | None = None,
    interrupt_when: Callable[[Message], bool] | None = None,
    timeout: float = 240,
) -> Outcome:
    """Run a graph to its end; interrupts it once, at the first message for which `interrupt_when` is true."""
    return asyncio.run(asyncio.wait_for(_queue(url, prompt, workflow, interrupt_when), timeout))


async def _queue(
    url: str,
    prompt: dict[str, Any],
    workflow: dict[str, Any] | None,
    interrupt_when: Callable[[Message], bool] | None,
) -> Outcome:
    outcome, client_id, began = Outcome(), uuid.uuid4().hex, time.monotonic()
    body: dict[str, Any] = {"prompt": prompt, "client_id": client_id}
    if workflow is not None:
        body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws?clientId={client_id}", max_msg_size=LARGEST_MESSAGE) as socket,
    ):
        async with session.post(f"{url}/prompt", json=body) as answer:
            accepted = await answer.json()
        if "prompt_id" not in accepted or accepted.get("node_errors"):
            outcome.status, outcome.error = "refused", json.dumps(accepted)
            return outcome
        async for message in _texts(socket, outcome):
            if interrupt_when is not None and interrupt_when(message):
                interrupt_when = None
                await (await session.post(f"{url}/interrupt", json={})).release()
            if _is_over(message, accepted["prompt_id"], outcome):
                break
        async with session.get(f"{url}/history/{accepted['prompt_id']}") as answer:
            outcome.outputs = (await answer.json()).get(accepted["prompt_id"], {}).get("outputs", {})
    outcome.seconds = time.monotonic() - began
    return outcome


async def _texts(socket: aiohttp.ClientWebSocketResponse, outcome: Outcome) -> Any:
    """The JSON messages; binary ones are counted as previews when they are pictures."""
    async for raw in socket:
        if raw.type == aiohttp.WSMsgType.BINARY:
            outcome.previews += int.from_bytes(raw.data[:4], "big") in (1, 4)
        elif raw.type == aiohttp.WSMsgType.TEXT:
            message = json.loads(raw.data)
            outcome.messages.append(message)
            yield message


def _is_over(message: Message, prompt_id: str, outcome: Outcome) -> bool:
    """Whether this message ends the graph; notes why."""
    kind, data = message["type"], message["data"]
    if data.get("prompt_id") != prompt_id:
        return False
    if kind == "execution_error":
        outcome.status, outcome.error, outcome.error_node = "error", data["exception_message"], data["node_type"]
    if kind == "execution_interrupted":
        outcome.status = "interrupted"
    return kind == "executing" and data["node"] is None  # sent after the history was written, unlike execution_success
