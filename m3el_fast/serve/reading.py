"""Requests read: bodies under a limit, JSON or a form, into queries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, TypeVar

from anyio import from_thread
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from m3el_fast.errors import InputError
from m3el_fast.serve.errors import Refused, first_error, shown
from m3el_fast.serve.limits import Limits
from m3el_fast.serve.linking import Query
from m3el_fast.serve.pictures import decode_picture, from_base64
from m3el_fast.serve.schema import LinkForm, LinkIn, MentionIn

Asked = tuple[Query, float | None]
"""A query, and the NIL threshold that it asks for."""

Parse = Callable[[], Asked]
"""What is left to do with a body that was read: slow, for a thread of anyio's; it ends early when that is cancelled."""

_Model = TypeVar("_Model", bound=BaseModel)

_FORMS = "application/json or multipart/form-data"


async def read_query(request: Request, size: int, limits: Limits) -> Parse:
    """Read the body of a request to link; pictures are decoded to ``size`` when the result is called.

    Raises:
        Refused: it is too large (413), or neither JSON nor a form (415); the form is malformed (400).
    """
    described, options = parse_options_header(request.headers.get("content-type"))
    kind = described.decode("latin-1")
    body = _limited(request, limits.body)
    if kind == "application/json":
        content = b"".join([chunk async for chunk in body])
        return partial(_from_json, content, size, limits)
    if kind == "multipart/form-data":
        fields, file = await _read_form(options.get(b"boundary", b""), body, limits)
        return partial(_from_form, fields, file, size, limits)
    raise Refused(415, "header content-type", _FORMS, shown(kind) if kind else "none")


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The chunks of a body. One that is too large is read to its end and dropped, so that a client that writes before
    it reads, as browsers do, gets to the answer."""
    said = int(request.headers.get("content-length", 0))
    count, refused = 0, said > most
    async for chunk in request.stream():
        count += len(chunk)
        refused = refused or count > most
        if not refused:
            yield chunk
    if refused:
        raise Refused(413, "body", f"at most {most:,} bytes", f"{said:,}" if said else "more")


class _FormParser(MultiPartParser):
    """Knows whether it got to the end of the form; without that, the last field is lost."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _read_form(
    boundary: bytes, body: AsyncGenerator[bytes, None], limits: Limits
) -> tuple[dict[str, str], bytes | None]:
    """The fields of a form, and its file ``image``."""
    # In latin-1 every byte is a character: what is not UTF-8 can be told afterwards.
    quoted = boundary.decode("latin-1").replace("\\", r"\\").replace('"', r"\"")
    kind = f'multipart/form-data; charset=latin-1; boundary="{quoted}"'
    parser = _FormParser(Headers({"content-type": kind}), body, max_files=1, max_fields=8, max_part_size=limits.body)
    parser.spool_max_size = limits.body + 1  # in memory
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:  # the latter: of older versions of starlette
        raise Refused(400, "body", "a form", error) from None
    if not parser.ended:
        raise Refused(400, "body", "a form that ends with its boundary", "one that does not")
    fields: dict[str, str] = {}
    file = None
    for raw, value in form.multi_items():
        name = _utf8(raw)
        if name in fields or (name == "image" and file is not None):
            raise InputError(f"field {shown(name)}", "each field once", "it twice")
        if (name, value) == ("image", ""):
            continue
        if isinstance(value, UploadFile) != (name == "image"):
            expected, got = ("a file", "a text") if name == "image" else ("a text", "a file")
            raise InputError(f"field {shown(name)}", expected, got)
        if isinstance(value, UploadFile):
            file = await value.read()
            await value.close()
        else:
            fields[name] = _utf8(value)
    return fields, file or None  # browsers send an empty file where none was chosen


def _utf8(latin: str) -> str:
    data = latin.encode("latin-1")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused(400, "body", "a form in UTF-8", shown(data)) from None


def _from_json(content: bytes, size: int, limits: Limits) -> Asked:
    request = _checked(lambda: LinkIn.model_validate_json(content))
    _check_candidates(request.candidates, request.k)
    mentions, pictures = [], []
    for number, mention in enumerate(request.mentions, 1):
        where = f"mentions, record {number}, field image"
        mentions.append(_record(mention))
        data = from_base64(mention.image, where, limits) if mention.image else None
        from_thread.check_cancelled()  # the time may be up before all pictures are decoded
        pictures.append(None if data is None else decode_picture(data, where, size, limits))
    return Query(mentions, pictures, request.k, request.candidates), request.nil_threshold


def _from_form(fields: dict[str, str], file: bytes | None, size: int, limits: Limits) -> Asked:
    # an empty field of a form is one that was not filled in
    form = _checked(lambda: LinkForm.model_validate({k: v for k, v in fields.items() if v or k in _TEXTS}))
    _check_candidates(form.candidates, form.k)
    picture = None if file is None else decode_picture(file, "image", size, limits)
    mention = {"mention": form.mention, "sentence": form.sentence}
    return Query([mention], [picture], form.k, form.candidates), form.nil_threshold


_TEXTS = ("mention", "sentence")


def _record(mention: MentionIn) -> dict[str, Any]:
    record: dict[str, Any] = {"mention": mention.mention, "sentence": mention.sentence}
    return record if mention.candidates is None else record | {"candidates": mention.candidates}


def _checked(parse: Callable[[], _Model]) -> _Model:
    try:
        return parse()
    except ValidationError as error:
        raise first_error(error) from None


def _check_candidates(candidates: int | None, k: int) -> None:
    if candidates is not None and candidates < k:
        raise InputError("candidates", f"at least {k} (k)", candidates)
