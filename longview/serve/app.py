"""The routes. A page that is mounted on the app comes behind them, and inside the same guard."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

import longview
from longview.deadlines import end, within
from longview.requests import Limits
from longview.serve import chat, decisions, responses, sse
from longview.serve.backend import Job
from longview.serve.errors import APIError, internal, invalid, of_job, of_validation
from longview.serve.files import FileStore
from longview.serve.indexes import Indexes
from longview.serve.jobs import JobBuilder
from longview.serve.joined import add_join_routes
from longview.serve.memory import Trimmer
from longview.serve.models import Models
from longview.serve.openapi import document
from longview.serve.schema import ChatRequest, neutral
from longview.serve.security import Guard, tenant_of
from longview.serve.settings import ServerOptions
from longview.serve.vector_stores import add_vector_store_routes

MAX_DEPTH = 32
"""Objects and lists in each other, in a request's body."""
SMALL_BODY = 1 << 18
"""A larger body is parsed in a thread, as that takes so long that others would wait."""
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
SILENT_SECONDS = 30.0
"""A body of which nothing comes for so long is waited for no longer."""
ACCEPT_SECONDS = 10.0
"""A stream begins when its media are open, so that their errors have a status of their own; or after so long."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Body = TypeVar("Body", bound=BaseModel)


class Server:
    """What the routes need.

    Attributes:
        draining: It has been told to end; what runs may go on.
    """

    def __init__(
        self,
        options: ServerOptions,
        limits: Limits,
        models: Models,
        files: FileStore,
        keys: Sequence[str] = (),
        indexes: Indexes | None = None,
    ) -> None:
        self.indexes = indexes or Indexes(())
        self.options, self.models, self.files, self.keys = options, models, files, tuple(keys)
        self.jobs = JobBuilder(options, limits, files)
        self.draining = False
        self._trimmer = Trimmer()

    def tenant(self, request: Request) -> str:
        """A digest of the key that came with a request; "" where none is needed."""
        return tenant_of(request.headers.get("authorization", "")) if self.keys else ""

    async def read(self, request: Request, schema: type[Body]) -> Body:
        """The body of a request.

        Raises:
            APIError: it is no JSON, too large, or not as the schema says.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise APIError(415, f"the body is {kind or 'of no type'!r:.60}; send Content-Type: application/json")
        limit = int(self.options.max_body_bytes)
        body = bytearray()
        try:
            async for chunk in incoming(request, self.options.request_seconds):
                body += chunk
                if len(body) > limit:
                    text = f"the body is larger than {limit:,} bytes; upload media with /v1/files"
                    raise APIError(413, text, code="body_too_large")
        finally:
            self._trimmer.note(len(body))
        if len(body) <= SMALL_BODY:
            return parse(bytes(body), schema)
        return await asyncio.to_thread(parse, bytes(body), schema)

    def completion(self, asked: ChatRequest) -> chat.Completion:
        """The answer to a request, which nothing has been said of yet.

        Raises:
            APIError: there is no such model.
        """
        facts = self.models.find(asked.model).facts
        with_receipt = asked.longview is None or asked.longview.receipt is not False
        return chat.Completion(asked.model, facts, with_receipt)

    async def events(self, model: str, job: Job) -> AsyncGenerator[dict[str, Any]]:
        """The events of a job, which ends in an error when it takes too long.

        Raises:
            APIError: it cannot be begun, or takes too long.
        """
        deadline = asyncio.get_running_loop().time() + self.options.request_seconds
        async with contextlib.AsyncExitStack() as at_end:
            at_end.callback(self._trimmer.note, sum(map(len, job.blobs)))
            events = await at_end.enter_async_context(contextlib.aclosing(self.models.events(model, job)))
            while True:
                try:
                    left = deadline - asyncio.get_running_loop().time()
                    event = await within(anext(events), left)
                except StopAsyncIteration:
                    return
                except asyncio.TimeoutError:
                    raise APIError(504, f"the request took {self.options.request_seconds:g} s, and was ended") from None
                if event["event"] == "ended" and event["error"] is not None:
                    raise of_job(event["error"], job.params)
                yield event


async def incoming(request: Request, seconds: float = math.inf) -> AsyncIterator[bytes]:
    """The body of a request, as it comes.

    Args:
        seconds: It may take, in all.

    Raises:
        APIError: nothing more comes, or it takes too long.
    """
    loop = asyncio.get_running_loop()
    last, stream = loop.time() + seconds, request.stream()
    while True:
        try:
            yield await within(anext(stream), min(SILENT_SECONDS, last - loop.time()))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise APIError(408, "the rest of the body has not come in time", code="body_timeout") from None


def parse(body: bytes, schema: type[Body]) -> Body:
    """
    Raises:
        APIError: the body is no JSON, nests too deeply, or is not as the schema says.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise invalid("the body is not JSON", code="invalid_json") from None
    if not isinstance(data, dict):
        raise invalid("the body is no JSON object", code="invalid_json")
    if SURROGATE.search(body) and not is_text(data):
        raise invalid("the body holds half of a surrogate pair, which is no character", code="invalid_json")
    if depth_of(data) > MAX_DEPTH:
        raise invalid(f"the body nests objects and lists deeper than {MAX_DEPTH}", code="invalid_json")
    try:
        return schema.model_validate(neutral(data))
    except ValidationError as error:
        raise of_validation(error, data) from None


def is_text(data: Any) -> bool:
    """Whether all strings in it can be written: JSON may spell halves of characters, which no tokenizer takes."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def depth_of(data: Any) -> int:
    """How deep objects and lists are in each other."""
    depth, level = 0, [data]
    while level:
        inner = (each for each in level if isinstance(each, (dict, list)))
        level = [value for each in inner for value in (each.values() if isinstance(each, dict) else each)]
        depth += 1
    return depth - 1


async def accepted(events: AsyncGenerator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """The same events, after the first has come.

    Raises:
        APIError: the first says that the request cannot be answered.
    """
    first = asyncio.ensure_future(anext(events))
    await asyncio.wait([first], timeout=ACCEPT_SECONDS)
    if first.done():
        first.result()

    async def rest() -> AsyncIterator[dict[str, Any]]:
        try:
            yield await first
            async for event in events:
                yield event
        finally:
            await end(first)
            await events.aclose()

    return rest()


def create_app(server: Server) -> FastAPI:
    """The app, with the guard around it."""
    app = FastAPI(
        title="longview", version=longview.__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json"
    )
    app.state.server = server
    options = server.options
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(options.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(
        Guard, keys=server.keys, allowed_hosts=(options.host, *options.allowed_hosts), cors_origins=options.cors_origins
    )
    _handle_errors(app)
    _add_service_routes(app, server)
    add_join_routes(app, server)
    _add_file_routes(app, server)
    _add_answer_routes(app, server)
    add_vector_store_routes(app, server)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


def _handle_errors(app: FastAPI) -> None:
    async def of_api(_: Request, error: Any) -> Response:
        app.state.server.models.metrics.reject(error.code)
        return JSONResponse(error.body, error.status, error.headers)

    async def of_http(_: Request, error: Any) -> Response:
        found = APIError(error.status_code, str(error.detail))
        return JSONResponse(found.body, found.status, {**(error.headers or {}), **found.headers})

    async def of_bug(_: Request, error: Exception) -> Response:
        return JSONResponse(internal().body, 500, internal().headers)

    async def of_leaving(_: Request, error: Any) -> Response:
        return Response(status_code=499)  # to nobody

    app.add_exception_handler(ClientDisconnect, of_leaving)
    app.add_exception_handler(APIError, of_api)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, of_bug)


def _add_service_routes(app: FastAPI, server: Server) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Whether every model's process is up."""
        if server.models.all_ready:
            return JSONResponse({"status": "ok"})
        raise APIError(503, "a model's process is being started", code="model_down", retry_after=5)

    @app.get("/ready")
    async def ready() -> Response:
        """Whether requests are taken: not before the models are open, nor after SIGTERM."""
        if server.draining or not server.models.all_ready:
            raise APIError(503, "the server is ending" if server.draining else "models are being opened", retry_after=5)
        return JSONResponse({"status": "ready"})

    @app.get("/version")
    async def version() -> Response:
        return JSONResponse({"version": longview.__version__})

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(server.models.metrics.render(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": server.models.describe()})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Response:
        server.models.find(name)
        return JSONResponse(next(card for card in server.models.describe() if card["id"] == name))


def _add_file_routes(app: FastAPI, server: Server) -> None:
    files = server.files

    @app.post("/v1/files")
    async def upload_file(request: Request) -> Response:
        """Keep a picture or a video, to be asked about by its id."""
        kind = request.headers.get("content-type", "")
        if not kind.lower().startswith("multipart/form-data"):
            raise APIError(415, "a file is uploaded as multipart/form-data", "file")
        stored = await files.receive(kind, incoming(request), server.tenant(request))
        return JSONResponse(stored.body())

    @app.get("/v1/files")
    async def list_files(request: Request, purpose: str | None = None) -> Response:
        """The files that were uploaded with the same key."""
        found = [stored.body() for stored in files.listed(server.tenant(request), purpose)]
        return JSONResponse({"object": "list", "data": found, "has_more": False})

    @app.get("/v1/files/{id}")
    async def show_file(request: Request, id: str) -> Response:
        return JSONResponse(files.find(id, server.tenant(request)).body())

    @app.get("/v1/files/{id}/content")
    async def download_file(request: Request, id: str) -> Response:
        stored = files.find(id, server.tenant(request))
        # never as a page of this site, whatever was uploaded
        return FileResponse(files.path(stored), media_type="application/octet-stream", filename=stored.filename)

    @app.delete("/v1/files/{id}")
    async def delete_file(request: Request, id: str) -> Response:
        files.delete(files.find(id, server.tenant(request)))
        return JSONResponse({"id": id, "object": "file", "deleted": True})


def _add_answer_routes(app: FastAPI, server: Server) -> None:
    @app.post("/v1/chat/completions")
    async def complete_chat(request: Request) -> Response:
        """Answer a conversation with text, pictures and videos."""
        asked = await server.read(request, ChatRequest)
        completion = server.completion(asked)
        events = server.events(asked.model, server.jobs.chat(asked, server.tenant(request)))
        if asked.stream:
            include_usage = asked.stream_options is not None and asked.stream_options.include_usage
            return sse.EventStream(chat.chunks(await accepted(events), completion, include_usage))
        return await _json(chat.whole(events, completion), request)

    @app.post("/v1/chat/completions/render")
    async def render_chat(request: Request) -> Response:
        """What answering a conversation would take; nothing is computed."""
        asked = await server.read(request, ChatRequest)
        job = server.jobs.chat(asked, server.tenant(request))
        job.do = "render"
        return await _json(_rendered(server, asked.model, job), request)

    @app.post("/v1/responses")
    async def respond(request: Request) -> Response:
        """The same in the words of OpenAI's Responses API; nothing is stored."""
        asked = await server.read(request, responses.ResponseRequest)
        as_chat = responses.chat_of(asked)
        reply = responses.Reply(asked, server.completion(as_chat))
        events = server.events(asked.model, server.jobs.chat(as_chat, server.tenant(request), "input"))
        if asked.stream:
            return sse.EventStream(responses.stream(await accepted(events), reply))
        return await _json(responses.whole(events, reply), request)

    @app.post("/v1/decisions")
    async def decide(request: Request) -> Response:
        """Answer typed questions about one conversation, by probabilities."""
        asked = await server.read(request, decisions.DecisionRequest)
        server.models.find(asked.model)
        questions = [decisions.question_of(question, number) for number, question in enumerate(asked.questions)]
        job = server.jobs.score(decisions.conversation_of(asked), questions, server.tenant(request), asked.longview)
        return await _json(_decided(server, asked, job), request)


async def _json(work: Coroutine[Any, Any, Any], request: Request) -> Response:
    """The result of some work, which ends when the client goes."""
    body = await sse.until_disconnect(work, request.receive)
    return JSONResponse(body) if body is not None else Response(status_code=499)


async def _rendered(server: Server, model: str, job: Job) -> dict[str, Any]:
    async with contextlib.aclosing(server.events(model, job)) as events:
        found = await anext(events)
    facts = server.models.find(model).facts
    usage = {"prompt_tokens": found["prompt_tokens"], "image_tokens": found["visual_tokens"]}
    kept = {name: found[name] for name in ("pictures", "max_completion_tokens")}
    said = {"frames": found["frames"], "warnings": found["warnings"]}
    head = {"object": "chat.completion.render", "model": model, "context_length": facts["context_length"]}
    return {**head, "usage": usage, **kept, "longview": said}


async def _decided(server: Server, asked: decisions.DecisionRequest, job: Job) -> dict[str, Any]:
    async with contextlib.aclosing(server.events(asked.model, job)) as events:
        return decisions.body(asked, await anext(events))
