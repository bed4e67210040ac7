"""The page's server: on this machine only, for the page only, one text at a time.

Whatever else the browser has open may send requests to a loopback port. So a request must name this server as
its host, which a rebound DNS name does not; and a POST must be JSON and come from the page itself, which a
form or a script of another site cannot.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import socket
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from bakeoff.errors import BakeoffError, missing
from bakeoff.playground import explain

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from bakeoff.playground.candidates import Candidate

HOST = "127.0.0.1"
MOST_BYTES = 256 * 1024  # of a request
MOST_WAITING = 16  # requests for a model

_FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css")} | {
    "/page.js": ("page.js", "text/javascript")
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def listen(port: int) -> socket.socket:
    """A socket of 127.0.0.1; port 0 for any that is free. To call before models are loaded.

    Raises:
        BakeoffError: the port is taken, or a package that `serve` needs is missing.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise missing(f"{package} is missing; install it with", "try")
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise BakeoffError(
            f"port {port} cannot be had ({reason}); choose another --port, or 0 for any that is free."
        ) from None
    return listening


def serve(candidates: Sequence[Candidate], listening: socket.socket) -> None:
    """Serve the page until Ctrl-C, which is raised as `KeyboardInterrupt` once the server has ended.

    Args:
        candidates: the runs, of which one at least has a model.
        listening: what `listen` gave.
    """
    import uvicorn

    config = uvicorn.Config(
        app(candidates), log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=1, lifespan="off",
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])


def app(candidates: Sequence[Candidate]) -> ASGIApp:
    """The application: the page, `GET /runs`, and `POST` to `/classify`, `/attribute` and `/pattern`."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    turns = _Turns()

    def static(name: str, media_type: str) -> Callable[[Request], Response]:
        content = resources.files("bakeoff.playground").joinpath(name).read_bytes()
        return lambda request: Response(content, media_type=media_type)

    def listed(request: Request) -> Response:
        return JSONResponse(
            [
                {
                    "name": candidate.name,
                    "where": candidate.where,
                    "fault": candidate.fault,
                    "texts": candidate.texts,
                    "labels": candidate.labels,
                    "layers": candidate.layers,
                    "most_tokens": candidate.classifier.max_length if candidate.classifier else 0,
                    "most_explained": explain.MOST_TOKENS,
                }
                for candidate in candidates
            ]
        )

    def answering(answer: Callable[[Candidate, tuple[str, ...], dict[str, Any]], Any]) -> Callable[..., Any]:
        async def endpoint(request: Request) -> Response:
            try:
                values = await _values(request)
                candidate, text = _chosen(candidates, values), _text(values)
                if candidate.texts not in (None, len(text)):
                    wants = ("one text", "two texts")[candidate.texts == 2]
                    raise BakeoffError(f"{candidate.where} is a task of {wants}.")
                return JSONResponse(await turns.take(answer, candidate, text, values))
            except _RefusedError as refusal:
                raise HTTPException(refusal.status, str(refusal)) from None
            except BakeoffError as error:
                raise HTTPException(400, str(error)) from None

        return endpoint

    def refused(request: Request, error: Any) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"the server failed ({type(error).__name__})"}, 500)

    inner = Starlette(
        routes=[
            *(Route(path, static(*file)) for path, file in _FILES.items()),
            Route("/runs", listed),
            Route("/classify", answering(_classify), methods=["POST"]),
            Route("/attribute", answering(_attribute), methods=["POST"]),
            Route("/pattern", answering(_pattern), methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False),
        ],
        exception_handlers={HTTPException: refused, Exception: broken},
    )

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        await inner(scope, receive, sent)

    return guarded


def _classify(candidate: Candidate, text: tuple[str, ...], values: dict[str, Any]) -> Any:
    start = time.perf_counter()
    (prediction,) = candidate.classifier([text])  # type: ignore[misc]
    return dataclasses.asdict(prediction) | {"milliseconds": 1000 * (time.perf_counter() - start)}


def _attribute(candidate: Candidate, text: tuple[str, ...], values: dict[str, Any]) -> Any:
    return dataclasses.asdict(explain.attribute(candidate.classifier, text))  # type: ignore[arg-type]


def _pattern(candidate: Candidate, text: tuple[str, ...], values: dict[str, Any]) -> Any:
    layer = values.get("layer")
    if type(layer) is not int:
        raise BakeoffError("layer is a whole number.")
    weights, tokens = explain.pattern(candidate.classifier, text, layer)  # type: ignore[arg-type]
    rows = [[float(f"{weight:.4g}") for weight in row] for row in weights.tolist()]
    return {"weights": rows, "tokens": [token.text for token in tokens]}


class _RefusedError(Exception):
    """A request that is answered with an HTTP status of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def _values(request: Request) -> dict[str, Any]:
    """The JSON object that the page sent."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _RefusedError(415, "the content type must be application/json.")
    if request.headers.get("origin", f"http://{request.url.netloc}") != f"http://{request.url.netloc}":
        raise _RefusedError(403, "only the page itself may ask.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise _RefusedError(
                413, f"this is more than the {MOST_BYTES // 1024} KiB that one request may have."
            )
    try:
        values = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise BakeoffError(f"this is no JSON ({type(error).__name__}).") from None
    if not isinstance(values, dict):
        raise BakeoffError("a request is a JSON object.")
    return values


def _chosen(candidates: Sequence[Candidate], values: dict[str, Any]) -> Candidate:
    run = values.get("run")
    if type(run) is not int or not 0 <= run < len(candidates):
        raise BakeoffError(f"run is a whole number from 0 to {len(candidates) - 1}.")
    if candidates[run].classifier is None:
        raise BakeoffError(f"this run has no model: {candidates[run].fault}")
    return candidates[run]


def _text(values: dict[str, Any]) -> tuple[str, ...]:
    texts = values.get("texts")
    if not isinstance(texts, list) or len(texts) not in (1, 2) or not all(isinstance(t, str) for t in texts):
        raise BakeoffError("texts is a list of one or two texts.")
    if not all(text.strip() for text in texts):
        raise BakeoffError("a text is empty.")
    return tuple(texts)


class _Turns:
    """One call of a model at a time, in the order of asking; who finds too many waiting is sent away."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def take(self, work: Callable[..., Any], *args: Any) -> Any:
        from starlette.concurrency import run_in_threadpool

        if self._waiting >= MOST_WAITING:
            raise _RefusedError(503, "too many requests are waiting; try again in a moment.")
        self._waiting += 1
        try:
            async with self._lock:
                return await run_in_threadpool(work, *args)
        finally:
            self._waiting -= 1
