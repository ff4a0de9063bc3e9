"""OpenAI's vector stores, as far as they fit: the indexes of `longview index` are listed and searched, not made, here.

    filters    kind      eq, in       moment, picture, passage
               folder    eq           below the index's own
               date      gte, lt      of the file's last change, as 2026-11-29
               duration  gte, lte     seconds of a video

Several are joined by `and`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from longview.deadlines import within
from longview.errors import LongviewError, RequestError
from longview.index.settings import FindOptions
from longview.serve.errors import APIError, invalid
from longview.serve.indexes import Result, ServedIndex
from longview.serve.schema import Strict

if TYPE_CHECKING:
    from longview.serve.app import Server

KINDS = {"moment": "frame", "picture": "picture", "passage": "passage"}
OPTIONS = {
    ("date", "gte"): "after",
    ("date", "lt"): "before",
    ("duration", "gte"): "min_duration",
    ("duration", "lte"): "max_duration",
}
MOST = 50


class Ranking(Strict):
    """How results are ranked."""

    ranker: Literal["none", "auto"] = "auto"
    score_threshold: float = 0.0


class SearchRequest(Strict):
    """A search in one index."""

    query: str = Field(min_length=1, max_length=4096)
    filters: dict[str, Any] | None = None
    max_num_results: int = Field(10, ge=1, le=MOST)
    ranking_options: Ranking = Ranking()
    rewrite_query: Literal[False] = False


def add_vector_store_routes(app: FastAPI, server: Server) -> None:
    """Add the routes; where no index is served, the list is empty."""
    indexes = server.indexes

    def find(id: str) -> ServedIndex:
        if id not in indexes.by_name:
            known = ", ".join(indexes.by_name) or "none; serve one with --index NAME=FOLDER"
            raise APIError(404, f"there is no index {id!r:.80}; there are: {known}", "vector_store_id", "not_found")
        return indexes.by_name[id]

    def described(index: ServedIndex) -> dict[str, Any]:
        try:
            return index.describe()
        except (RequestError, OSError):
            raise APIError(404, f"the index {index.name!r:.80} is gone", "vector_store_id", "not_found") from None

    @app.get("/v1/vector_stores")
    async def list_vector_stores() -> Response:
        """The indexes that are served."""
        data = [described(index) for index in indexes.by_name.values()]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return JSONResponse({"object": "list", "data": data, **ends, "has_more": False})

    @app.get("/v1/vector_stores/{vector_store_id}")
    async def show_vector_store(vector_store_id: str) -> Response:
        return JSONResponse(described(find(vector_store_id)))

    @app.post("/v1/vector_stores/{vector_store_id}/search")
    async def search_vector_store(request: Request, vector_store_id: str) -> Response:
        """Moments of films, pictures and passages nearest to a text."""
        index = find(vector_store_id)
        asked = await server.read(request, SearchRequest)
        options, kinds = options_of(asked, index)
        results, warnings = await searched(server, index.name, asked.query, options, kinds)
        data = [_result(each) for each in results if each.found["score"] >= asked.ranking_options.score_threshold]
        head = {"object": "vector_store.search_results.page", "search_query": [asked.query]}
        more = {"has_more": False, "next_page": None, "longview": {"warnings": warnings}}
        return JSONResponse({**head, "data": data, **more})


async def searched(
    server: Server,
    name: str,
    text: str,
    options: FindOptions,
    kinds: list[str],
    pictures: bool = False,
) -> tuple[list[Result], list[str]]:
    """
    Raises:
        APIError: there is nothing to look for, the index cannot be read, or it takes too long.
    """
    if not text.strip():
        raise invalid("there is nothing to look for; give a text", "query")
    try:
        return await within(server.indexes.search(name, text, options, kinds, pictures), server.options.request_seconds)
    except RequestError as error:
        raise invalid(str(error), "query") from None
    except (LongviewError, OSError) as error:
        raise APIError(503, f"the index {name!r:.80} cannot be searched: {error}", retry_after=5) from None
    except asyncio.TimeoutError:
        raise APIError(504, f"the search took {server.options.request_seconds:g} s, and was ended") from None


def options_of(asked: SearchRequest, index: ServedIndex) -> tuple[FindOptions, list[str]]:
    """The options of a search, and the kinds of items.

    Raises:
        APIError: a filter that there is not, or a folder outside of the index.
    """
    found: dict[str, Any] = {}
    kinds: list[str] = []
    for key, kind, value in _comparisons(asked.filters):
        if key == "kind" and kind in ("eq", "in"):
            wanted = value if isinstance(value, list) else [value]
            unknown = [each for each in wanted if not isinstance(each, str) or each not in KINDS]
            if unknown:
                raise invalid(f"there is no kind {unknown[0]!r:.60}; there are {', '.join(KINDS)}", "filters")
            kinds = [KINDS[each] for each in wanted]
        elif key == "folder" and kind == "eq" and isinstance(value, str):
            try:
                found["under"] = index.within(value)
            except RequestError as error:
                raise invalid(str(error), "filters") from None
        elif (key, kind) in OPTIONS:
            found[OPTIONS[key, kind]] = value
        else:
            raise invalid(
                f"there is no filter {key!r:.60} by {kind!r:.20}; there are kind (eq, in), folder (eq), date (gte, lt) "
                "and duration (gte, lte), joined by and",
                "filters",
            )
    try:
        return FindOptions(top=asked.max_num_results, **found), kinds
    except RequestError as error:
        raise invalid(str(error), "filters") from None


def _comparisons(filters: dict[str, Any] | None) -> list[tuple[str, str, Any]]:
    """The comparisons that must all hold: key, how, value."""
    if filters is None:
        return []
    if filters.get("type") == "and" and isinstance(filters.get("filters"), list):
        inner = [each for each in filters["filters"] if isinstance(each, dict)]
        if len(inner) == len(filters["filters"]):
            return [comparison for each in inner for comparison in _comparisons(each)]
    if set(filters) == {"type", "key", "value"}:
        return [(str(filters["key"]), str(filters["type"]), filters["value"])]
    raise invalid('a filter is {"type": …, "key": …, "value": …}, or {"type": "and", "filters": […]}', "filters")


def _result(result: Result) -> dict[str, Any]:
    """As OpenAI's API returns it."""
    from longview.index.answer import place_of
    from longview.index.moments import Found

    found = Found(**result.found)
    told = {name: result.found[name] for name in ("begin", "end", "at", "source", "place") if name in result.found}
    attributes = {"kind": found.kind, **told, "duration": result.duration}
    return {
        "file_id": f"file-{result.digest[:24]}",
        "filename": result.name,
        "score": found.score,
        "attributes": {name: value for name, value in attributes.items() if value is not None},
        "content": [{"type": "text", "text": found.text or place_of(found)}],
    }
