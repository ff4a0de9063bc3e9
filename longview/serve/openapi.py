"""The OpenAPI document: the routes of the app with their docstrings, and the schemas of their bodies.

Made here rather than by FastAPI, whose document changes with its version; `docs/openapi.json` is what this returns.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import longview
from longview.serve.decisions import DecisionRequest
from longview.serve.responses import ResponseRequest
from longview.serve.schema import ChatRequest
from longview.serve.vector_stores import SearchRequest

Mode = Literal["validation", "serialization"]

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/chat/completions/render": ChatRequest,
    "/v1/responses": ResponseRequest,
    "/v1/decisions": DecisionRequest,
    "/v1/vector_stores/{vector_store_id}/search": SearchRequest,
}
UPLOAD = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
    "required": ["file", "purpose"],
}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of an app's own routes."""
    bodies: list[tuple[type[Any], Mode]] = [(model, "validation") for model in dict.fromkeys(BODIES.values())]
    references, schemas = models_json_schema(bodies, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for route in app.routes:
        if isinstance(route, APIRoute):
            for method in sorted(route.methods or ()):
                operation = _operation(route)
                if route.path in BODIES:
                    schema: Any = references[BODIES[route.path], "validation"]
                    operation["requestBody"] = _body("application/json", schema)
                elif method == "POST":
                    operation["requestBody"] = _body("multipart/form-data", UPLOAD)
                paths.setdefault(route.path.replace(":path}", "}"), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "longview", "version": longview.__version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: APIRoute) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "responses": {"200": {"description": "As it was asked."}, "default": {"description": "An error.", **error}},
    }
    about = inspect.getdoc(route.endpoint)
    if about:
        operation["summary"] = about
    names = sorted(route.param_convertors)
    if names:
        schema = {"type": "string"}
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    return operation


def _body(kind: str, schema: Any) -> dict[str, Any]:
    return {"required": True, "content": {kind: {"schema": schema}}}
