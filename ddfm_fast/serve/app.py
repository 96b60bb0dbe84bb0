"""The routes: ``/fuse``, and those that report the state of the service."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import re
import secrets
import time
import traceback
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from .bodies import Call, from_form, from_json
from .engine import Answer, Engine, Item, in_thread
from .formats import check_kind
from .limits import Clock, Held, Left, Limits, Receive, Refused, check_length, discard, read_body
from .logs import Log
from .metrics import CONTENT_TYPE, Metrics
from .openapi import document, page
from .pictures import FORMATS, chosen_format, size_of
from .queue import Queue

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_HEADER = 4000
CLIENT_LEFT = 499


class Service:
    """What the routes share."""

    def __init__(self, engine: Engine, limits: Limits, token: str | None, log: Log):
        self.engine, self.limits, self.log = engine, limits, log
        self.token = None if token is None else token.encode()
        self.metrics = Metrics()
        self.held = Held(limits.max_held)
        self.queue: Queue | None = None
        self.ready = False
        self.stopping = False
        self.document = document(limits, token is not None)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Work from the start of the server to its end."""
        self.queue = Queue(self.engine, self.limits, self.metrics)
        start = asyncio.create_task(self._start(self.queue))
        try:
            yield
        finally:
            self.stopping, self.ready = True, False
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            await self.queue.stop()

    async def _start(self, queue: Queue) -> None:
        try:
            await queue.start()
        except Exception as error:
            self.log("failed", error=f"{type(error).__name__}: {error}")
            raise
        self.ready = True
        self.log("ready")

    def check_token(self, request: Request) -> None:
        """Refuse a request without the token."""
        if self.token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token)
        if scheme.lower() != "bearer" or not known:
            what = "is wrong" if given else "is missing"
            raise Refused(
                401, f"the token {what}; send the header Authorization: Bearer TOKEN",
                WWW_Authenticate="Bearer", Connection="close",
            )  # fmt: skip

    async def fuse(self, request: Request) -> Response:
        """Fuse the pair of a request."""
        clock = Clock(self.limits.timeout)
        facts = request.state.facts
        self.check_token(request)
        queue = self.queue
        if self.stopping or not self.ready or queue is None:
            doing = "stops" if self.stopping else "loads"
            raise Refused(
                503, f"the service {doing}; try again", Retry_After="1", Connection="close"
            )
        check_length(request.headers, self.limits)
        queue.check()
        body = await read_body(request.receive, self.limits, self.held, clock)
        count = facts["bytes"] = len(body)
        try:
            call = await self._call(request, queue, body)
            del body
            form, as_json = chosen_format(call.format, request.headers.get("accept", ""))
            sizes = await in_thread(queue.files, self._sizes, call)
            done = asyncio.get_running_loop().create_future()
            item = Item(call, form, sizes, clock, done)
            answer = await _while_there(queue.answer(item), request.receive)
        finally:
            self.held.give(count)
        facts.update(
            size=list(answer.size), dtype=answer.dtype, format=form, batch=answer.batch,
            waited=round(answer.waited, 4),
        )  # fmt: skip
        return _response(answer, form, as_json)

    async def _call(self, request: Request, queue: Queue, body: bytes) -> Call:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await from_form(body, request.headers)
        if kind == "application/json":
            return await in_thread(queue.files, from_json, body)
        raise Refused(
            415, f"Content-Type is {kind!r}; expected multipart/form-data or application/json"
        )

    def _sizes(self, call: Call) -> tuple[tuple[int, ...], ...]:
        most, taken = self.limits.max_pixels, self.limits.formats
        check_kind(call.ir, "ir", taken)
        check_kind(call.vis, "vis", taken)
        return size_of(call.ir, "ir", most), size_of(call.vis, "vis", most)

    async def health(self, _: Request) -> Response:
        """Say that the process answers."""
        return JSONResponse({"ok": True})

    async def is_ready(self, _: Request) -> Response:
        """Return whether it can fuse."""
        ok = self.ready and not self.stopping
        waiting = 0 if self.queue is None else len(self.queue)
        return JSONResponse({"ready": ok, "queue": waiting}, 200 if ok else 503)

    async def read_metrics(self, request: Request) -> Response:
        """Show the counters."""
        self.check_token(request)
        return Response(self.metrics.page(), media_type=CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        """Show the OpenAPI document."""
        return JSONResponse(self.document)

    async def docs(self, _: Request) -> Response:
        """Show it as a page."""
        return HTMLResponse(page(self.document))


async def _while_there(work: Any, receive: Receive) -> Answer:
    """Wait for work, which is canceled when the client leaves."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Left
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _response(answer: Answer, form: str, as_json: bool) -> Response:
    if as_json:
        return JSONResponse(
            {
                "image": base64.b64encode(answer.data).decode(), "format": form,
                "shape": answer.size, "dtype": answer.dtype, "report": answer.report,
                "warnings": answer.warnings,
            }
        )  # fmt: skip
    headers = {"X-DDFM-Report": json.dumps(answer.report, default=str)}
    if answer.warnings:
        headers["X-DDFM-Warnings"] = json.dumps(answer.warnings)
    headers = {n: text for n, text in headers.items() if len(text) <= _LONGEST_HEADER}
    return Response(answer.data, media_type=FORMATS[form], headers=headers)


class Watch:
    """Wraps the application: an id, errors as JSON, a line in the log and the counters."""

    def __init__(self, app: Any, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else secrets.token_hex(8)
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts
        scope["app"] = self  # tells the router to raise an error for unknown paths
        status = 0

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Left:
            status = CLIENT_LEFT
        except Exception as error:
            answer = await self._refusal(error, name, facts, scope, receive)
            await answer(scope, receive, sent)
        finally:
            self._tell(scope, name, status, time.monotonic() - started, facts)

    async def _refusal(
        self, error: Exception, name: str, facts: dict[str, Any], scope: Any, receive: Any
    ) -> Response:
        headers: dict[str, str] = {}
        if isinstance(error, Refused):
            status, sentence, headers = error.status, str(error), error.headers
        elif isinstance(error, HTTPException):
            status, sentence = error.status_code, _sentence(error, scope)
            headers = dict(error.headers or {})
        else:
            status, sentence = 500, f"the service failed; its log has request {name}"
            *_, last = traceback.extract_tb(error.__traceback__)
            facts["failure"] = f"{type(error).__name__}: {error}"
            facts["where"] = f"{last.filename}:{last.lineno}"
        facts["error"] = sentence
        waits = dict(scope["headers"]).get(b"expect", b"").lower() == b"100-continue"
        if headers.get("Connection") == "close" and not waits:
            await discard(receive, self.service.limits)
        return JSONResponse({"error": sentence, "request": name}, status, headers)

    def _tell(
        self, scope: Any, name: str, status: int, seconds: float, facts: dict[str, Any]
    ) -> None:
        service, path = self.service, scope["path"]
        route = path if path in ROUTES else "other"
        service.metrics.answered(route, status, seconds)
        client = scope.get("client")
        service.log(
            "request", id=name, method=scope["method"], path=path, status=status,
            seconds=round(seconds, 4), client=client[0] if client else None, **facts,
        )  # fmt: skip


def _sentence(error: HTTPException, scope: Any) -> str:
    if error.status_code == 404:
        return f"there is nothing at {scope['path'][:100]}; expected one of {', '.join(ROUTES)}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{scope['path']} does not take {scope['method']}; expected {allowed}"
    return str(error.detail)


ROUTES = ("/fuse", "/health", "/ready", "/metrics", "/openapi.json", "/docs")


def make_app(service: Service) -> Any:
    """Make the ASGI application of a service."""
    answers = (
        service.fuse, service.health, service.is_ready, service.read_metrics, service.openapi,
        service.docs,
    )  # fmt: skip
    routes = [
        Route(path, answer, methods=["POST"] if path == "/fuse" else ["GET"])
        for path, answer in zip(ROUTES, answers, strict=True)
    ]
    return Watch(Router(routes, lifespan=service.lifespan), service)
