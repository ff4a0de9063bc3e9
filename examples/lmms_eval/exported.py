"""Rows of `longview eval export --to evalscope` as lmms-eval asks them; used by longview_exported.yaml."""

import base64
import io

from PIL import Image


def messages_of(doc, lmms_eval_specific_kwargs=None):
    """The messages, with pictures in place of data URIs."""
    return [
        {"role": message["role"], "content": [_part(part) for part in message["content"]]}
        for message in doc["messages"]
    ]


def pictures_of(doc):
    return [part["url"] for part in messages_of(doc)[0]["content"] if part["type"] == "image"]


def text_of(doc, lmms_eval_specific_kwargs=None):
    return "".join(part["text"] for part in messages_of(doc)[0]["content"] if part["type"] == "text")


def is_right(doc, results):
    return {"exact": float(results[0].strip().lower() == doc["answer"].strip().lower())}


def _part(part):
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "image_url":
        data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        return {"type": "image", "url": Image.open(io.BytesIO(data)).convert("RGB")}
    return {"type": "video", "url": part["video_url"]["url"]}
