"""The request that brings a dataset in: its parts are written to disk as they come, and nothing of it is held in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from ..trainer_core.file_names import cleaned
from ..trainer_core.half_written import unfinished
from .folders import input_dir
from .http_requests import Refusal
from .intake import ARCHIVE, CHUNK, Incoming, Intake

MALFORMED = (ValueError, RuntimeError, AssertionError, HttpProcessingError)  # what aiohttp's reader raises on odd bytes
BROKEN_OFF = (ConnectionError, asyncio.IncompleteReadError, web.RequestPayloadError)


async def new_dataset(request: web.Request) -> dict[str, Any]:
    """A new folder in ComfyUI's input folder from the files of the request; its name, and what came of the files."""
    name = cleaned(request.query.get("name", ""), "dataset")
    async with _hidden(input_dir()) as folder:
        intake = Intake(folder)
        try:
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                await _receive(part, intake)
        except MALFORMED:
            raise Refusal(400, "the body is not multipart/form-data, or is cut off") from None
        except BROKEN_OFF:
            raise Refusal(400, "the upload was broken off") from None
        folder = await asyncio.to_thread(intake.settle, input_dir(), name)
    return {"folder": folder, "pictures": intake.pictures, "left_out": intake.left_out}


async def _receive(part: BodyPartReader | MultipartReader | None, intake: Intake) -> None:
    """One file of the request to where it belongs; an archive is unpacked there."""
    if not isinstance(part, BodyPartReader) or not part.filename:
        raise Refusal(400, "every part must be a file with a name")
    is_archive = part.filename.lower().endswith(ARCHIVE)
    incoming = intake.archive() if is_archive else intake.open(part.filename)
    if incoming is None:
        while chunk := await part.read_chunk(CHUNK):
            intake.count(len(chunk))
        return
    await _write(part, incoming)
    if is_archive:
        await asyncio.to_thread(intake.unpack, incoming.path)


async def _write(part: BodyPartReader, incoming: Incoming) -> None:
    with incoming:
        while chunk := await part.read_chunk(CHUNK):
            await asyncio.to_thread(incoming.write, chunk)


@asynccontextmanager
async def _hidden(folder: Path) -> AsyncIterator[Path]:
    """An empty hidden folder inside this one, gone at the end whatever happens."""
    holding = unfinished(folder)
    new = await asyncio.to_thread(holding.__enter__)
    try:
        await asyncio.to_thread(new.mkdir)
        yield new
    finally:
        await asyncio.to_thread(holding.__exit__, None, None, None)
