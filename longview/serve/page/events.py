"""What happens when the page is used. The browser holds the conversations; nothing of them stays here."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import gradio as gr

from longview.index.settings import FindOptions
from longview.serve.app import Server
from longview.serve.errors import APIError, invalid
from longview.serve.page import chat, evidence, examples, found, saved, shown
from longview.serve.page.asking import Asking, look
from longview.serve.page.components import NOBODY, Components, beside_choices, declared
from longview.serve.page.controls import drawing, settings_given, shown_value
from longview.serve.page.conversation import Conversation, Shown, Turn
from longview.serve.page.store import Store, new_id
from longview.serve.vector_stores import searched

Updates = dict[Any, Any]
FETCH_SAVED = """(token) => {
  if (!token) return;
  const link = document.createElement("a");  // to go there would end the tab's stream of events
  link.href = `/page/saved/${token}`;
  link.download = "";
  link.click();
}"""
BEAT_SECONDS, BEATS = 0.5, 30
FOUND = 24
"""Results of a search on the page."""
ANSWERING: Updates = {"submit_btn": False, "stop_btn": True}
WAITING: Updates = {"submit_btn": True, "stop_btn": False}


class Events:
    """The handlers of one page.

    Args:
        folder: Of files that the page hands out.
    """

    def __init__(self, server: Server, components: Components, folder: Path) -> None:
        self.server, self.its, self.folder = server, components, folder
        self.declared = {name: each for name, each in declared().items() if name in components.controls}
        self._gen = components.controls["gen"]
        self.running: dict[str, Asking] = {}
        """What is being answered, by the session of a browser's tab."""
        self.downloads: dict[str, tuple[str, Path]] = {}
        """Saved conversations by token: whose, and where."""
        self.evidence = evidence.EvidencePages(folder / "evidence")

    def connect(self, page: Any) -> None:
        """Bind the handlers to their events."""
        its = self.its
        outputs = [
            *its.chats,
            its.box,
            its.frames,
            its.rests,
            its.kept,
            its.past,
            its.report,
            *its.models,
            its.system,
            *its.controls.values(),
        ]
        asked = [its.kept, *its.models, its.system, *its.controls.values()]
        how: Any = {
            "outputs": outputs,
            "show_progress": "hidden",
            "concurrency_limit": None,
            "api_visibility": "private",
        }
        its.box.submit(self.submit, [its.box, *asked], **how)
        its.box.stop(self.stop, None, None, concurrency_limit=None, api_visibility="private")
        its.chats[0].example_select(self.example, asked, **how)
        for each in its.chats:
            each.retry(self.retry, asked, **how)
            each.undo(self.undo, [its.kept], **how)
            each.edit(self.edit, asked, **how)
        its.frames.again(self.again, asked, **how)
        its.frames.anew(self.anew, asked, **how)
        its.rest.click(self.rests_on, [its.kept], **how)
        its.new.click(self.begin, [its.kept], **how)
        its.past.input(self.reopen, [its.kept, its.past], **how)
        its.forget.click(self.forget, [its.kept], **how)
        its.models[1].select(self.compare, [its.kept, *its.models], **how)
        its.models[0].select(self.compare, [its.kept, *its.models], **how)
        its.load.upload(self.open, [its.load, its.kept], **how)
        its.replay.click(self.replay, asked, **how)
        its.save.click(self.save, [its.kept], [its.token], api_visibility="private").then(
            None, [its.token], None, js=FETCH_SAVED, api_visibility="private"
        )
        its.search.submit(
            self.search,
            [its.search, its.index],
            [its.found],
            show_progress="minimal",
            concurrency_limit=None,
            api_visibility="private",
        )
        page.load(self.restore, [its.kept], **how)
        page.load(self.listen, None, None, show_progress="hidden", concurrency_limit=None, api_visibility="private")

    async def listen(self) -> AsyncGenerator[None]:
        """Keep a tab's stream of events open: Gradio closes it when nothing runs, and an event that begins at that very
        moment is then never heard of again."""
        while not self.server.draining:
            for _ in range(BEATS):
                await asyncio.sleep(BEAT_SECONDS)
                if self.server.draining:
                    return
            yield

    async def search(self, text: str, index: str) -> str:
        """What an index holds that is nearest to a text."""
        try:
            if index not in self.server.indexes.by_name:
                raise invalid("there is no such index; open the page again")
            options = FindOptions(top=FOUND)
            results, warnings = await searched(self.server, index, text or "", options, [], pictures=True)
        except APIError as error:
            return found.refused(error.message)
        return found.html(results, warnings)

    # ── asking ──

    async def submit(self, request: gr.Request, box: dict[str, Any], kept: Any, *rest: Any) -> AsyncGenerator[Updates]:
        text, files = (box.get("text") or "").strip(), box.get("files") or []
        if not text and not files:
            yield {}
            return
        media, wrong = [], []
        for file in files:
            try:
                media.append(await self._keep(Path(file), request, link=True))
            except APIError as error:
                wrong.append(error.message)
        if wrong:
            gr.Warning("<br>".join(wrong), duration=15, title="Not asked")
            yield {self.its.box: gr.update(value={"text": text, "files": []})}
            return
        store = Store(kept)
        async for updates in self._ask_next(store, Turn(text=text, shown=media), rest, request):
            yield updates

    async def example(
        self, request: gr.Request, event: gr.SelectData, kept: Any, *rest: Any
    ) -> AsyncGenerator[Updates]:
        example = examples.available()[event.index if isinstance(event.index, int) else event.index[0]]
        try:
            files = [await self._keep(path, request) for path in example.paths]
        except APIError as error:
            gr.Warning(error.message, duration=15, title="Not asked")
            yield {}
            return
        given = dict(zip(self.its.controls, rest[3:], strict=True))
        given |= {
            name: None if declared.optional else declared.default
            for name, declared in self.declared.items()
            if name in ("select", "frames", "fps")
        }
        given |= example.settings
        changed = {
            self.its.controls[name]: shown_value(self.declared[name], example.settings)
            for name in ("select", "frames", "fps")
        }
        values = [*rest[:3], *(given[name] for name in self.its.controls)]
        async for updates in self._ask_next(Store(kept), Turn(text=example.question, shown=files), values, request):
            yield {**changed, **updates}

    async def retry(self, request: gr.Request, event: gr.RetryData, kept: Any, *rest: Any) -> AsyncGenerator[Updates]:
        async for updates in self._ask_again(Store(kept), chat.turn_of(event.index), None, rest, request):
            yield updates

    async def edit(self, request: gr.Request, event: gr.EditData, kept: Any, *rest: Any) -> AsyncGenerator[Updates]:
        async for updates in self._ask_again(Store(kept), chat.turn_of(event.index), str(event.value), rest, request):
            yield updates

    async def again(self, request: gr.Request, event: gr.EventData, kept: Any, *rest: Any) -> AsyncGenerator[Updates]:
        """Ask the last question once more, about the frames that are left."""
        store = Store(kept)
        self._choose(store, event, by_hand=True)
        async for updates in self._ask_again(store, -1, None, rest, request):
            yield updates

    async def anew(self, request: gr.Request, event: gr.EventData, kept: Any, *rest: Any) -> AsyncGenerator[Updates]:
        """Ask the last question once more, about frames that are chosen by the settings; pinned ones stay."""
        store = Store(kept)
        self._choose(store, event, by_hand=False)
        async for updates in self._ask_again(store, -1, None, rest, request):
            yield updates

    def _choose(self, store: Store, event: gr.EventData, by_hand: bool) -> None:
        conversation = store.current
        if conversation is None or not conversation.turns:
            return
        for model, medium, frames, pinned in shown.kept(event._data.get("groups") if event._data else None):
            media = conversation.media(len(conversation.turns) - 1, model)
            if medium < len(media) and media[medium].kind == "video":
                media[medium].pinned = pinned
                media[medium].chosen.pop(model, None)
                if by_hand:
                    media[medium].chosen[model] = frames

    async def stop(self, request: gr.Request) -> None:
        # a coroutine, as events of asyncio are set in the loop's own thread
        asking = self.running.get(request.session_hash or "")
        if asking is not None:
            asking.stopped.set()

    async def _ask_next(self, store: Store, turn: Turn, rest: Any, request: gr.Request) -> AsyncGenerator[Updates]:
        """Ask a new question in the conversation that is open, or in a new one."""
        conversation = store.current or Conversation(id=new_id(), models=self._models(rest))
        conversation.turns.append(turn)
        yield {self.its.box: gr.update(value=None)}
        async for updates in self._ask(store, conversation, rest, request):
            yield updates

    async def _ask_again(
        self, store: Store, number: int, text: str | None, rest: Any, request: gr.Request
    ) -> AsyncGenerator[Updates]:
        """Ask one question of the conversation once more; what came after it is gone."""
        conversation = store.current
        if conversation is None or not -1 <= number < len(conversation.turns) or not conversation.turns:
            yield {}
            return
        number %= len(conversation.turns)
        del conversation.turns[number + 1 :]
        if text is not None:
            conversation.turns[number].text = text
        async for updates in self._ask(store, conversation, rest, request):
            yield updates

    async def _ask(
        self, store: Store, conversation: Conversation, rest: Any, request: gr.Request
    ) -> AsyncGenerator[Updates]:
        """Have the last question answered under the settings of the page."""
        conversation.models, conversation.system = self._models(rest), str(rest[2] or "")
        values = dict(zip(self.its.controls, rest[3:], strict=True))
        conversation.turns[-1].settings = settings_given(self.declared, values)
        async for updates in self._answer(store, conversation, len(conversation.turns) - 1, request):
            yield updates

    async def _answer(
        self, store: Store, conversation: Conversation, number: int, request: gr.Request
    ) -> AsyncGenerator[Updates]:
        session = request.session_hash or ""
        asking = self.running[session] = Asking(self.server, conversation, number, self._tenant(request))
        looked = 0
        try:
            began = {self.its.box: gr.update(**ANSWERING), self.its.rests: evidence.EMPTY}
            yield {**began, **self._kept(store, conversation)}
            async for _ in asking.run():
                updates = self._chats(conversation)
                if len(asking.opened) > looked:
                    looked = len(asking.opened)
                    updates[self.its.frames] = shown.html(conversation, number, asking.opened)
                yield updates
        finally:
            if self.running.get(session) is asking:
                del self.running[session]
        if not asking.opened:
            updates[self.its.frames] = shown.EMPTY
        yield {self.its.box: gr.update(**WAITING), **updates, **self._kept(store, conversation)}

    def _models(self, rest: Any) -> list[str]:
        names = self.server.models.names
        first = rest[0] if rest[0] in names else names[0]
        return [first] if rest[1] == first or rest[1] not in names else [first, rest[1]]

    def _tenant(self, request: gr.Request) -> str:
        return self.server.tenant(request)  # type: ignore[arg-type]  # it has headers, as Starlette's

    async def _keep(self, path: Path, request: gr.Request, link: bool = False) -> Shown:
        stored = await self.server.files.add(path, path.name, self._tenant(request), link)
        return Shown(file=stored.id, name=stored.filename, kind=stored.kind)  # type: ignore[arg-type]

    # ── showing ──

    def _chats(self, conversation: Conversation | None) -> Updates:
        models = [] if conversation is None else conversation.models
        first, second = self.its.chats
        updates = {first: gr.update(value=chat.messages_of(conversation, models[0] if models else ""))}
        if models:
            updates[first] = gr.update(value=chat.messages_of(conversation, models[0]), label=models[0])
        if len(models) > 1:
            updates[second] = gr.update(value=chat.messages_of(conversation, models[1]), label=models[1], visible=True)
        else:
            updates[second] = gr.update(value=[], visible=False)
        return updates

    def _kept(self, store: Store, conversation: Conversation) -> Updates:
        store.put(conversation)
        return {self.its.kept: store.as_json(), self.its.past: self._past(store)}

    def _past(self, store: Store) -> Any:
        return gr.update(choices=store.choices, value=store.open or None)

    def _choices(self, conversation: Conversation | None) -> Updates:
        """The models, some of which may have come or gone, and those of a conversation."""
        names = self.server.models.names
        first: Updates = {"choices": names}
        second: Updates = {"choices": beside_choices(names), "visible": len(names) > 1}
        here = [] if conversation is None else [model for model in conversation.models if model in names]
        if here:
            first["value"], second["value"] = here[0], here[1] if len(here) > 1 else NOBODY
        gen = gr.update(**drawing(self.server.models.facts.values()))
        return {self.its.models[0]: gr.update(**first), self.its.models[1]: gr.update(**second), self._gen: gen}

    async def _shown(self, store: Store, request: gr.Request, **more: Any) -> AsyncGenerator[Updates]:
        """All of the page for the conversation that is open; its frames come last, as they have to be opened.

        Args:
            more: Further updates, by the name of their component.
        """
        conversation, its = store.current, self.its
        updates: Updates = {its.kept: store.as_json(), its.past: self._past(store), its.report: ""}
        empty = {its.frames: shown.EMPTY, its.rests: evidence.EMPTY}
        updates |= {**self._chats(conversation), **empty, **self._choices(conversation)}
        updates |= {getattr(its, name): update for name, update in more.items()}
        if conversation is None or not conversation.turns:
            yield updates
            return
        updates[its.system] = conversation.system
        last = conversation.turns[-1]
        updates |= {
            its.controls[name]: gr.update(**look, value=shown_value(each, last.settings))
            for name, each in self.declared.items()
            for look in (drawing(self.server.models.facts.values()) if its.controls[name] is self._gen else {},)
        }
        yield updates
        opened, number = {}, len(conversation.turns) - 1
        for model in conversation.models:
            if model in self.server.models.names and model in last.answers and last.answers[model].frames:
                try:
                    opened[model] = await look(self.server, conversation, number, model, self._tenant(request))
                except APIError as error:
                    gr.Info(error.message)
        yield {its.frames: shown.html(conversation, number, opened)}

    async def restore(self, request: gr.Request, kept: Any) -> AsyncGenerator[Updates]:
        """The page after a reload. Nothing can be sent before, which this would overwrite."""
        store = Store(kept)
        current = store.current
        for answer in [] if current is None else [a for turn in current.turns for a in turn.answers.values()]:
            answer.ended = answer.ended or "stopped"
        if current is None:  # an example may be running
            yield {self.its.past: self._past(store), **self._choices(None), self.its.box: gr.update(**WAITING)}
            return
        async for updates in self._shown(store, request, box=gr.update(**WAITING)):
            yield updates

    async def begin(self, request: gr.Request, kept: Any) -> AsyncGenerator[Updates]:
        """A new chat."""
        await self.stop(request)
        store = Store(kept)
        store.open = ""
        async for updates in self._shown(store, request):
            yield updates

    async def reopen(self, request: gr.Request, kept: Any, id: str) -> AsyncGenerator[Updates]:
        """An earlier chat."""
        await self.stop(request)
        store = Store(kept)
        store.open = id
        async for updates in self._shown(store, request):
            yield updates

    async def forget(self, request: gr.Request, kept: Any) -> AsyncGenerator[Updates]:
        await self.stop(request)
        store = Store(kept)
        store.drop(store.open)
        async for updates in self._shown(store, request):
            yield updates

    async def undo(self, request: gr.Request, event: gr.UndoData, kept: Any) -> AsyncGenerator[Updates]:
        """Take a question back into the box, with its media."""
        store = Store(kept)
        conversation, number = store.current, chat.turn_of(event.index)
        if conversation is None or not 0 <= number < len(conversation.turns):
            yield {}
            return
        turn = conversation.turns[number]
        del conversation.turns[number:]
        if conversation.turns:
            store.put(conversation)
        else:
            store.drop(conversation.id)
        files = [str(path) for medium in turn.shown if (path := self._copy(medium, request)) is not None]
        async for updates in self._shown(store, request, box=gr.update(value={"text": turn.text, "files": files})):
            yield updates

    def _copy(self, medium: Shown, request: gr.Request) -> Path | None:
        """A medium under its own name, where the box takes it from."""
        try:
            stored = self.server.files.find(medium.file, self._tenant(request))
        except APIError:
            return None
        place = self.folder / "uploads" / secrets.token_hex(16) / (Path(stored.filename).name or "medium")
        place.parent.mkdir(parents=True)
        os.link(self.server.files.path(stored), place)
        return place

    async def compare(self, kept: Any, *rest: Any) -> Updates:
        """Show another model, or two, without asking anything."""
        conversation = Store(kept).current
        models = self._models(rest)
        if conversation is not None:
            conversation.models = models
            return self._chats(conversation)
        first, second = self.its.chats
        beside = gr.update(visible=True, label=models[1], value=[]) if len(models) > 1 else gr.update(visible=False)
        return {first: gr.update(label=models[0]), second: beside}

    async def rests_on(self, request: gr.Request, kept: Any) -> AsyncGenerator[Updates]:
        """Find out what the last answers rest on."""
        conversation, rests, tenant = Store(kept).current, self.its.rests, self._tenant(request)
        if conversation is None or not conversation.turns:
            gr.Info("There is no answer yet; ask something.")
            yield {}
            return
        yield {rests: evidence.COMPUTING}
        try:
            views, notes = await evidence.views_of(self.server, conversation, tenant)
        except APIError as error:
            gr.Warning(error.message, title="Not found out")
            yield {rests: evidence.EMPTY}
            return
        token = await asyncio.to_thread(lambda: self.evidence.keep(evidence.made(views), tenant))
        yield {rests: evidence.shown(token, notes)}

    # ── files ──

    async def save(self, request: gr.Request, kept: Any) -> str:
        """Write the conversation that is open to a file; returns the token that it is fetched by."""
        conversation = Store(kept).current
        if conversation is None or not conversation.turns:
            gr.Info("There is nothing to save yet; ask something.")
            return ""
        tenant, token = self._tenant(request), secrets.token_hex(16)
        place = self.folder / "saved" / f"{token}.zip"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            await saved.write(self.server, conversation, tenant, place)
        except APIError as error:
            place.unlink(missing_ok=True)
            gr.Warning(error.message, title="Not saved")
            return ""
        self.downloads[token] = (tenant, place)
        return token

    async def open(self, request: gr.Request, path: str, kept: Any) -> AsyncGenerator[Updates]:
        """A saved conversation."""
        await self.stop(request)
        store = Store(kept)
        try:
            conversation = await saved.read(self.server, Path(path), self._tenant(request))
        except APIError as error:
            gr.Warning(error.message, title="Not opened")
            yield {}
            return
        conversation.id = new_id()
        store.put(conversation)
        missing = [model for model in conversation.models if model not in self.server.models.names]
        said = f"{', '.join(missing)} is not served here: other models will answer. " if missing else ""
        report = f"{said}Opened. **Ask everything again** tells whether the answers are the same."
        async for updates in self._shown(store, request, report=report):
            yield updates

    async def replay(self, request: gr.Request, kept: Any, *rest: Any) -> AsyncGenerator[Updates]:
        """Ask all questions of the conversation once more, as they were asked, in a new one, and compare."""
        store = Store(kept)
        before = store.current
        if before is None or not before.turns:
            gr.Info("There is nothing to ask again.")
            yield {}
            return
        known = self.server.models.names
        models = before.models if all(model in known for model in before.models) else self._models(rest)
        conversation = before.copy_for(new_id(), models)
        turns, conversation.turns = conversation.turns, []
        same = every = 0
        for number, turn in enumerate(turns):
            conversation.turns.append(turn)
            async for updates in self._answer(store, conversation, number, request):
                yield updates
            for old, new in zip(before.models, models, strict=False):
                if old in before.turns[number].answers:
                    every += 1
                    same += before.turns[number].answers[old].text == turn.answers[new].text
        yield {self.its.report: f"{same} of {every} answers are the same."}
