"""The page: a chat with the models in a browser, on the port of the API.

    browser ── Guard ── Shield ── Gradio ── events.py ── asking.py ── the jobs of the HTTP routes
                        └ shield.py: only its own routes, no URLs      └ conversation.py: a turn → a ChatRequest

    components.py  what stands where       shown.py  the frames, with drop and pin  store.py  what the browser keeps
    controls.py    settings → components   chat.py   messages of the chat           saved.py  conversations as files
    found.py       what a search found     evidence.py  what the last answer rests on

The only place where Gradio is imported; importing this takes seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse

from longview.media.formats import HEAD, container_of, image_format_of
from longview.serve.app import Server
from longview.serve.errors import APIError
from longview.serve.page import evidence
from longview.serve.page.shield import PageMount, Shield
from longview.versions import missing

LIBRARIES = ("gradio",)
OCR = ("rapidocr", "onnxruntime")
MEDIA_TYPES = {"matroska": "video/x-matroska", "mp4": "video/mp4", "avi": "video/x-msvideo"}
HOUR = 3600


def import_library(server: Server) -> None:
    """Import Gradio, which takes seconds, and tell it where uploads go."""
    os.environ["GRADIO_TEMP_DIR"] = str(uploads_of(server))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    importlib.import_module("longview.serve.page.events")


class Page:
    """The page of a server. Slow to make, as Gradio is imported here; no coroutine.

    Attributes:
        uploads: Where Gradio puts what it is sent.
    """

    def __init__(self, server: Server) -> None:
        self.server, self.folder = server, server.files.folder / "page"
        self.uploads = uploads_of(server)
        self.uploads.mkdir(parents=True, exist_ok=True, mode=0o700)
        import_library(server)
        import gradio as gr

        from longview.serve.page.components import make_components, style, theme
        from longview.serve.page.controls import drawing
        from longview.serve.page.events import Events

        with gr.Blocks(title="longview", analytics_enabled=False, delete_cache=(HOUR // 4, HOUR)) as self.blocks:
            components = make_components(
                server.models.names,
                not missing(OCR),
                drawing(server.models.facts.values()),
                list(server.indexes.by_name),
            )
            self.events = Events(server, components, self.folder)
            self.events.connect(self.blocks)
        self.blocks.queue(default_concurrency_limit=None, max_size=server.options.max_queue)
        self._look = {"theme": theme(), "css": style()}

    def mount(self, app: FastAPI) -> None:
        """Add the page to the app, behind its routes. Call it before the app is started."""
        import gradio as gr

        @app.get("/page/media/{id}", include_in_schema=False)
        async def show_medium(request: Request, id: str) -> Response:
            """A picture or a video of a chat, for the browser to show."""
            stored = self.server.files.find(id, self.server.tenant(request))
            path = self.server.files.path(stored)
            headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
            return FileResponse(path, media_type=media_type_of(path), headers=headers)

        @app.get("/page/saved/{token}", include_in_schema=False)
        async def download(request: Request, token: str) -> Response:
            """A saved conversation, once."""
            owner, path = self.events.downloads.get(token, ("", None))
            if path is None or owner != self.server.tenant(request) or not path.is_file():
                raise APIError(404, "there is no such file; save the chat again")
            return FileResponse(path, media_type="application/zip", filename="chat.longview.zip")

        @app.get(f"{evidence.ROUTE}/{{token}}", include_in_schema=False)
        async def show_evidence(request: Request, token: str) -> Response:
            """A page of what an answer rests on; its program reaches nothing of this page's."""
            path = self.events.evidence.find(token, self.server.tenant(request))
            headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": evidence.POLICY}
            return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)

        inner = FastAPI()
        gr.mount_gradio_app(
            inner,
            self.blocks,
            "/",
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=self.server.options.max_file_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            **self._look,
        )
        gradio_app = inner.routes[-1].app  # type: ignore[attr-defined]
        app.router.routes.append(PageMount("/", app=Shield(gradio_app, self.server, self.uploads)))
        before = app.router.lifespan_context

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
            async with before(app) as state, inner.router.lifespan_context(inner):
                yield state

        app.router.lifespan_context = lifespan


def uploads_of(server: Server) -> Path:
    """Where Gradio puts what it is sent."""
    return server.files.folder / "page" / "uploads"


def media_type_of(path: Path) -> str:
    """The media type of a picture or a video, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    container, picture = container_of(head), image_format_of(head)
    if container is not None:
        return MEDIA_TYPES.get(container, "application/octet-stream")
    return "application/octet-stream" if picture is None else f"image/{picture.lower()}"
