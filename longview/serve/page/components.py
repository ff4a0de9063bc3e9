"""What stands where on the page; `events.py` says what happens when it is used."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from longview.requests import MediaOptions, Plugins, SamplingParams
from longview.serve.page import evidence, examples, shown, store
from longview.serve.page.controls import HIDDEN, component_of
from longview.settings import Setting, settings_of

FOLDER = Path(__file__).parent
NOBODY = ""
"""The second model, where one is asked alone."""
SYSTEM_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
FIRST_MEDIA, FIRST_SAMPLING = ("select", "frames", "fps"), ("max_tokens", "temperature", "top_p", "seed")
"""The settings that are not folded away."""
PLACEHOLDER = "### Ask about pictures and films\nDrop files into the box below, or begin with an example."


@dataclass(frozen=True)
class Components:
    """The components that events touch.

    Attributes:
        controls: By the name of their setting.
    """

    chats: Sequence[Any]
    box: Any
    models: Sequence[Any]
    system: Any
    controls: Mapping[str, Any]
    frames: Any
    rests: Any
    rest: Any
    kept: Any
    past: Any
    token: Any
    report: Any
    new: Any
    save: Any
    load: Any
    replay: Any
    forget: Any
    search: Any
    index: Any
    found: Any


def declared() -> dict[str, Setting]:
    """The settings of the page, by name."""
    owners = (MediaOptions, SamplingParams, Plugins)
    every = {name: each for owner in owners for name, each in settings_of(owner).items()}
    return {name: each for name, each in every.items() if name not in HIDDEN}


def beside_choices(names: Sequence[str]) -> list[tuple[str, str]]:
    """What may answer beside a model."""
    return [("nobody", NOBODY), *((name, name) for name in names)]


def style() -> str:
    """The style sheet, with the pictures of the examples."""
    sheet = (FOLDER / "page.css").read_text(encoding="utf-8")
    for number, example in enumerate(examples.available(), 1):
        picture = base64.b64encode((FOLDER / example.picture).read_bytes()).decode()
        place = f"#lv-chats .example:nth-child({number}) .example-content::before"
        sheet += f"{place} {{ background-image: url(data:image/jpeg;base64,{picture}); }}\n"
    return sheet


def theme() -> Any:
    return gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=SYSTEM_FONT,
        font_mono=["ui-monospace", "monospace"],
    )


def make_components(
    names: Sequence[str], reads: bool, drawing: Mapping[str, Any], indexes: Sequence[str] = ()
) -> Components:
    """Make the components, inside a `gr.Blocks`.

    Args:
        names: Of the models.
        indexes: Names of those that can be searched.
        reads: Text in pictures can be read.
        drawing: How the control of `gen` looks: `controls.drawing`.
    """
    kept = gr.BrowserState({}, storage_key=store.KEY, secret=store.KEY)
    token = gr.Textbox(visible=False)
    with gr.Row(elem_id="lv-head"):
        gr.HTML('<h1 class="lv-title">longview</h1>', elem_id="lv-name", padding=False)
        first = gr.Dropdown(list(names), value=names[0], label="Model", elem_id="lv-model", filterable=len(names) > 8)
        second = gr.Dropdown(
            beside_choices(names),
            value=NOBODY,
            label="Beside it",
            elem_id="lv-beside",
            visible=len(names) > 1,
            filterable=len(names) > 8,
        )
        new = gr.Button("New chat", elem_id="lv-new", min_width=90)
    with gr.Row(elem_id="lv-body", equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_id="lv-left"):
            with gr.Row(elem_id="lv-chats", equal_height=True):
                chats = [_chat(names[0], "lv-chat", True), _chat("", "lv-chat-beside", False)]
            box = gr.MultimodalTextbox(
                placeholder="Ask, or drop files here",
                label="Question",
                show_label=False,
                file_count="multiple",
                sources=["upload"],
                lines=1,
                max_lines=8,
                elem_id="lv-box",
                autofocus=True,
                max_plain_text_length=100_000,
                file_types=["image", "video"],
                submit_btn=False,  # until `Events.restore`
            )
        with gr.Column(scale=3, min_width=320, elem_id="lv-right"), gr.Tabs(elem_id="lv-tabs"):
            with gr.Tab("Frames", id="frames"):
                frames = gr.HTML(
                    shown.EMPTY,
                    js_on_load=shown.SCRIPT,
                    elem_id="lv-frames",
                    padding=False,
                    apply_default_css=False,
                )
            with gr.Tab("Evidence", id="evidence"):
                rest = gr.Button("What the last answer rests on", size="sm", elem_id="lv-rest")
                rests = gr.HTML(evidence.EMPTY, elem_id="lv-rests", padding=False, apply_default_css=False)
            with gr.Tab("Settings", id="settings"):
                controls, system = _settings(reads, drawing)
            with gr.Tab("Search", id="search", visible=bool(indexes)):
                search, index, results = _search(indexes)
            with gr.Tab("Chats", id="chats"):
                past = gr.Radio([], label="Earlier chats", elem_id="lv-past", interactive=True)
                with gr.Row():
                    forget = gr.Button("Delete this chat", size="sm")
                gr.Markdown("A saved file holds the questions, their media and settings, and the answers.")
                with gr.Row():
                    save = gr.Button("Save as a file", size="sm", elem_id="lv-save")
                    load = gr.UploadButton("Open a file", file_types=[".zip"], size="sm", elem_id="lv-open")
                replay = gr.Button("Ask everything again", size="sm", elem_id="lv-replay")
                report = gr.Markdown(elem_id="lv-report")
    return Components(
        chats,
        box,
        (first, second),
        system,
        controls,
        frames,
        rests,
        rest,
        kept,
        past,
        token,
        report,
        new,
        save,
        load,
        replay,
        forget,
        search,
        index,
        results,
    )


def _search(indexes: Sequence[str]) -> tuple[Any, Any, Any]:
    """The box for a text, the index that is searched, and what was found."""
    box = gr.Textbox(
        label="Search",
        show_label=False,
        placeholder="Find moments, pictures and passages",
        max_length=4096,
        submit_btn=True,
        elem_id="lv-search",
    )
    index = gr.Dropdown(
        list(indexes),
        value=next(iter(indexes), None),
        label="Index",
        visible=len(indexes) > 1,
        filterable=len(indexes) > 8,
        elem_id="lv-index",
    )
    found = gr.HTML(elem_id="lv-found", padding=False, apply_default_css=False)
    return box, index, found


def _chat(label: str, id: str, visible: bool) -> Any:
    cards: Any = [
        {"text": each.question, "display_text": f"{each.title}\n{each.question}"} for each in examples.available()
    ]
    return gr.Chatbot(
        label=label,
        elem_id=id,
        visible=visible,
        height=480,
        editable="user",
        buttons=["copy"],
        placeholder=PLACEHOLDER,
        examples=cards if visible else None,
        feedback_options=None,
        layout="bubble",
        min_width=300,
        latex_delimiters=[],
        allow_tags=False,
        group_consecutive_messages=False,
    )


def _settings(reads: bool, drawing: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The components of all settings by name, and that of the system message."""
    found: dict[str, Any] = {}

    def place(names: Sequence[str], owner: Any) -> None:
        known = settings_of(owner)
        for start in range(0, len(names), 2):
            with gr.Row():
                found.update({name: component_of(known[name]) for name in names[start : start + 2]})

    def rest(owner: Any, first: Sequence[str]) -> list[str]:
        return [name for name in settings_of(owner) if name not in (*first, *HIDDEN)]

    gr.Markdown("#### Frames of videos")
    place(FIRST_MEDIA, MediaOptions)
    with gr.Accordion("More about frames", open=False):
        place(rest(MediaOptions, FIRST_MEDIA), MediaOptions)
    gr.Markdown("#### The answer")
    place(FIRST_SAMPLING, SamplingParams)
    with gr.Accordion("More about the answer", open=False):
        place(rest(SamplingParams, FIRST_SAMPLING), SamplingParams)
    with gr.Row():
        if reads:
            found["ocr"] = component_of(settings_of(Plugins)["ocr"])
        found["gen"] = component_of(settings_of(Plugins)["gen"], **drawing)
    system = gr.Textbox(label="System", info="What the model is told before the first question.", lines=2, max_lines=6)
    return found, system
