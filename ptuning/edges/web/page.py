"""The page: its layout, and the handlers of its buttons. How a question gets its answer is in ``answers.py``."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ptuning.core.errors import UserError
from ptuning.edges.language import Language, LanguageChoice, language_of
from ptuning.edges.web.answers import AnswerOptions, Answers
from ptuning.edges.web.reports import framed, read_report, reports_below
from ptuning.edges.web.safe_markdown import literal, safe_markdown
from ptuning.edges.web.sessions import Column, PageSession, SessionStore
from ptuning.edges.web.texts import Texts
from ptuning.serving.chat_service import ChatService
from ptuning.serving.prefix_store import StoredPrefix
from ptuning.settings.arguments import AnswerArguments

Updates = dict[Any, Any]
_LANGUAGES: list[tuple[str, Language]] = [("中文", "zh"), ("English", "en")]
_FORMULAS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


_SETTINGS_WITH_INFO = (
    "max_length", "top_p", "temperature", "history", "max_new_tokens", "top_k", "repetition_penalty",
    "no_repeat_ngram_size", "seed",
)  # fmt: skip
"""Settings that have a line of explanation below their label."""

STREAM_PAUSE = 0.3
"""Seconds after the end of a stream before another may begin: gradio is closing its connection."""


class Page:
    """The page over one service.

    Args:
        service: already started.
        answers: of the same service.
        language: of the page; auto: that of each user's browser.
        report_root: reports below this folder can be opened.
    """

    def __init__(self, service: ChatService, answers: Answers, language: LanguageChoice, report_root: Path) -> None:
        self.service, self.answers, self.language, self.report_root = service, answers, language, report_root
        self.sessions = SessionStore()
        with gr.Blocks(title="ptuning · ChatGLM-6B", analytics_enabled=False, fill_width=True) as self.blocks:
            self._build(Texts("zh" if language == "auto" else language))
            self._connect()
        # No limit of concurrent events here: the engine has a queue of its own, and an error for when it is full.
        self.blocks.queue(default_concurrency_limit=None, api_open=True)

    # ---- layout

    def _build(self, texts: Texts) -> None:
        with gr.Row(elem_id="top"):
            self.heading = gr.HTML(self._heading(texts), elem_id="heading")
            self.languages = gr.Radio(
                _LANGUAGES, value=texts.language, show_label=False, container=False, elem_id="language", min_width=150
            )
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab(texts("chat_tab"), id="chat") as self.chat_tab, gr.Row(elem_id="chat"):
                with gr.Column(scale=7, min_width=300, elem_id="talk"):
                    self._build_talk(texts)
                with gr.Column(scale=3, min_width=270, elem_id="settings"):
                    self._build_settings(texts)
            with gr.Tab(texts("reports_tab"), id="reports") as self.reports_tab:
                self._build_reports(texts)

    def _build_talk(self, texts: Texts) -> None:
        with gr.Row(elem_id="columns"):
            built = [self._build_column(texts, number) for number in (1, 2)]
        self.columns, self.chats, self.notes = ([parts[index] for parts in built] for index in range(3))
        self.message = gr.HTML("", elem_id="message", visible=False)
        self.box = gr.Textbox(
            lines=1, max_lines=7, show_label=False, container=False, autofocus=True, elem_id="question",
            label=texts("question"), placeholder=texts("ask_here"),
        )
        self.asked = gr.Textbox(visible=False, label="question", elem_id="asked")
        with gr.Row(elem_id="buttons"):
            self.send = gr.Button(texts("send"), variant="primary", elem_id="send", min_width=90, scale=2)
            self.stop = gr.Button(texts("stop"), variant="stop", elem_id="stop", min_width=70, interactive=False)
            self.retry = gr.Button(texts("retry"), elem_id="retry", min_width=70)
            self.clear = gr.Button(texts("clear"), elem_id="clear", min_width=70)

    def _build_column(self, texts: Texts, number: int) -> tuple[Any, Any, Any]:
        with gr.Column(min_width=260, visible=number == 1, elem_id=f"column-{number}") as column:
            chat = gr.Chatbot(
                label=self.service.store.default, height="100%", elem_id=f"chat-{number}", buttons=["copy"], layout="bubble",
                placeholder=texts("greeting"), sanitize_html=True, latex_delimiters=_FORMULAS, feedback_options=None,
            )
            note = gr.HTML("", elem_id=f"note-{number}", elem_classes="note")
        return column, chat, note

    def _build_settings(self, texts: Texts) -> None:
        with gr.Row(elem_id="answered-by"):
            self.model = gr.Dropdown(
                self._choices(texts), value=self.service.store.default, label=texts("model"), elem_id="model",
                filterable=False, scale=1,
            )
            self.refresh = gr.Button("↻", elem_id="refresh", min_width=40, scale=0)
        self.compare = gr.Checkbox(False, label=texts("compare"), elem_id="compare")
        self.second = gr.Dropdown(
            self._choices(texts), value=self._second_default(), label=texts("second"), visible=False, elem_id="second",
            filterable=False,
        )
        defaults = AnswerArguments()
        self.max_length = gr.Slider(0, 4096, value=defaults.max_length, step=1, **_named(texts, "max_length"))
        self.top_p = gr.Slider(0.01, 1, value=defaults.top_p, step=0.01, **_named(texts, "top_p"))
        self.temperature = gr.Slider(0, 1, value=defaults.temperature, step=0.01, **_named(texts, "temperature"))
        with gr.Accordion(texts("more"), open=False, elem_id="more") as self.more:
            self.history = gr.Radio(_history_choices(texts), value="tuned", **_named(texts, "history"))
            self.max_new_tokens = gr.Number(0, precision=0, **_named(texts, "max_new_tokens"))
            self.top_k = gr.Number(defaults.top_k, precision=0, **_named(texts, "top_k"))
            self.repetition_penalty = gr.Number(
                defaults.repetition_penalty, step=0.05, **_named(texts, "repetition_penalty")
            )
            self.no_repeat_ngram_size = gr.Number(
                defaults.no_repeat_ngram_size, precision=0, **_named(texts, "no_repeat_ngram_size")
            )
            self.seed = gr.Number(0, precision=0, **_named(texts, "seed"))

    def _build_reports(self, texts: Texts) -> None:
        with gr.Row(elem_id="choose-report"):
            self.report = gr.Dropdown(
                [], value=None, label=texts("report"), info=texts("report_info", self.report_root), elem_id="report",
                allow_custom_value=True, scale=5,
            )
            self.open = gr.Button(texts("open"), variant="primary", elem_id="open", min_width=120, scale=1)
        self.report_page = gr.HTML("", elem_id="report-page")

    # ---- events

    def _connect(self) -> None:
        options = [
            self.model, self.compare, self.second, self.max_length, self.top_p, self.temperature, self.history,
            self.max_new_tokens, self.top_k, self.repetition_penalty, self.no_repeat_ngram_size, self.seed,
        ]
        talk = [*self.chats, *self.notes, self.message, self.box, self.send, self.stop, self.retry]
        labels = [
            self.heading, self.languages, self.chat_tab, self.reports_tab, self.model, self.compare, self.second,
            self.clear, self.more, self.report, self.open, self.report_page,
            *(getattr(self, name) for name in _SETTINGS_WITH_INFO),
        ]  # fmt: skip
        # All streams of a page share one connection, which gradio closes after the last of them; an event that starts in
        # that moment is lost. So only answers are streamed; everything else is a request of its own.
        # Types are checked before (allowlist.py), and values out of range become a message on the page (answers.py).
        # gradio's own preprocessing would turn such a value into a traceback in the log and show nothing on the page.
        every: dict[str, Any] = {"show_progress": "hidden", "preprocess": False}
        stream: dict[str, Any] = every | {"trigger_mode": "multiple"}
        quick: dict[str, Any] = every | {"queue": False}
        submitted = gr.on(
            [self.box.submit, self.send.click], self._on_submit, self.box, [self.box, self.asked],
            api_visibility="private", **quick,
        )  # fmt: skip
        submitted.then(self._on_send, [self.asked, *options], talk, api_name="send", **stream)
        self.retry.click(self._on_retry, options, talk, api_name="retry", **stream)
        self.stop.click(self._on_stop, None, None, api_name="stop", **quick)
        self.clear.click(self._on_clear, None, talk, api_name="clear", **quick)
        self.compare.input(self._on_compare, self.compare, [*self.columns, self.second, *talk], api_name="compare", **quick)
        models = [self.model, self.second]
        self.refresh.click(self._on_refresh, models, [*models, *self.chats, self.heading], api_name="refresh", **quick)
        gr.on([model.input for model in models], self._on_choose, models, self.chats, api_visibility="private", **quick)
        self.languages.input(self._on_language, [self.languages, *models], [*labels, *talk], api_name="language", **quick)
        self.reports_tab.select(self._on_reports, self.report, self.report, api_name="reports", **quick)
        self.open.click(self._on_open, self.report, self.report_page, api_name="open_report", **quick)
        self.report.input(self._on_open, self.report, self.report_page, api_visibility="private", **quick)
        self.blocks.load(self._on_load, models, [*labels, *talk], api_visibility="private", **quick)
        self.blocks.unload(self._on_leave)

    async def _on_submit(self, request: gr.Request, question: str | None) -> Updates:
        """Take the question out of the input if it can be asked now. This is an event of its own because gradio's client may
        skip an update that a stream overwrites at once."""
        session = self._session(request)[0]
        question = question or ""
        if session.run is not None or not question.strip() or self.answers.reject_too_long(session, question):
            return {self.box: gr.update(), self.asked: ""}
        await asyncio.sleep(max(0.0, session.ended + STREAM_PAUSE - time.monotonic()))
        return {self.box: "", self.asked: question}

    async def _on_send(self, request: gr.Request, question: str, *options: Any) -> AsyncIterator[Updates]:
        session, texts = self._session(request)
        yield self._talk(session, texts)
        async for _ in self.answers.send(session, question or "", _options(*options)):
            yield self._talk(session, texts)
        session.ended = time.monotonic()

    async def _on_retry(self, request: gr.Request, *options: Any) -> AsyncIterator[Updates]:
        session, texts = self._session(request)
        yield self._talk(session, texts)
        async for _ in self.answers.retry(session, _options(*options)):
            yield self._talk(session, texts)
        session.ended = time.monotonic()

    def _on_stop(self, request: gr.Request) -> None:
        self._session(request)[0].stop()

    def _on_clear(self, request: gr.Request) -> Updates:
        session, texts = self._session(request)
        session.clear()
        return self._talk(session, texts)

    def _on_compare(self, on: bool, request: gr.Request) -> Updates:
        session, texts = self._session(request)
        session.compare(on)
        columns: Updates = {self.columns[1]: gr.update(visible=on), self.second: gr.update(visible=on)}
        return columns | self._talk(session, texts)

    def _on_refresh(self, model: str | None, second: str | None, request: gr.Request) -> Updates:
        texts = self._session(request)[1]
        return self._models(texts, model, second) | {self.heading: self._heading(texts)}

    def _on_choose(self, model: str | None, second: str | None) -> Updates:
        return {chat: gr.update(label=name) for chat, name in zip(self.chats, (model, second), strict=True)}

    def _on_language(
        self, language: Language, model: str | None, second: str | None, request: gr.Request
    ) -> Updates:
        session, _ = self._session(request)
        session.language = language
        return self._everything(session, Texts(language), model, second)

    def _on_load(self, model: str | None, second: str | None, request: gr.Request) -> Updates:
        session, texts = self._session(request)
        return self._everything(session, texts, model, second)

    def _on_leave(self, request: gr.Request) -> None:
        self.sessions.leave(request.session_hash)

    # Clients of gradio pass arguments by name: the parameters' names of public functions are part of the page's API.
    def _on_reports(self, chosen: str | None) -> Any:
        names = reports_below(self.report_root)
        return gr.update(choices=names, value=chosen or (names[0] if names else None))

    def _on_open(self, folder: str | None, request: gr.Request) -> str:
        texts = self._session(request)[1]
        if not folder or not str(folder).strip():
            return _hint(texts("choose_report" if reports_below(self.report_root) else "no_report", self.report_root))
        try:
            return framed(read_report(self.report_root, str(folder)), str(folder))
        except UserError as error:
            return _hint(texts("bad_report", error), is_error=True)

    # ---- updates of what the page shows

    def _session(self, request: gr.Request) -> tuple[PageSession, Texts]:
        session = self.sessions.get(request.session_hash)
        if session.language is not None:
            return session, Texts(session.language)
        if self.language != "auto":
            return session, Texts(self.language)
        return session, Texts(language_of(dict(request.headers).get("accept-language")))

    def _talk(self, session: PageSession, texts: Texts) -> Updates:
        """The conversation, and which buttons can be pressed now."""
        busy = session.run is not None
        error = "" if session.error is None else _hint(texts.note(session.error), is_error=True)
        updates: Updates = {self.message: gr.update(value=error, visible=bool(error))}
        for column, chat, note in zip(session.columns, self.chats, self.notes, strict=True):
            updates[chat] = gr.update(value=_messages(column), placeholder=texts("greeting"))
            updates[note] = _notes(column, texts)
        updates[self.box] = gr.update() if session.returned is None else gr.update(value=session.returned)
        session.returned = None
        updates[self.send] = gr.update(interactive=not busy, value=texts("send"))
        updates[self.stop] = gr.update(interactive=busy, value=texts("stop"))
        updates[self.retry] = gr.update(interactive=not busy and bool(session.columns[0].rounds), value=texts("retry"))
        return updates

    def _everything(self, session: PageSession, texts: Texts, model: str | None, second: str | None) -> Updates:
        updates = self._labels(texts) | self._talk(session, texts)
        more = self._models(texts, model, second) | {self.box: gr.update(placeholder=texts("ask_here"))}
        for component, update in more.items():
            updates[component] = updates.get(component, {}) | update
        return updates

    def _labels(self, texts: Texts) -> Updates:
        """Everything whose text depends on the language."""
        updates: Updates = {
            self.heading: self._heading(texts),
            self.languages: texts.language,
            self.chat_tab: gr.update(label=texts("chat_tab")),
            self.reports_tab: gr.update(label=texts("reports_tab")),
            self.compare: gr.update(label=texts("compare")),
            self.clear: texts("clear"),
            self.more: gr.update(label=texts("more")),
            self.report: gr.update(label=texts("report"), info=texts("report_info", self.report_root)),
            self.open: texts("open"),
            self.report_page: gr.skip(),
        }
        for name in _SETTINGS_WITH_INFO:
            updates[getattr(self, name)] = gr.update(label=texts(name), info=texts(f"{name}_info"))
        updates[self.history] = gr.update(
            label=texts("history"), info=texts("history_info"), choices=_history_choices(texts)
        )
        return updates

    def _models(self, texts: Texts, model: str | None, second: str | None) -> Updates:
        """The models that can be chosen now; a selected one that was unloaded is replaced by the default."""
        names, choices = self.service.store.names(), self._choices(texts)
        first = model if model in names else self.service.store.default
        other = second if second in names else self._second_default()
        return {
            self.model: gr.update(choices=choices, value=first, label=texts("model")),
            self.second: gr.update(choices=choices, value=other, label=texts("second")),
            **self._on_choose(first, other),
        }

    def _choices(self, texts: Texts) -> list[tuple[str, str]]:
        def label(stored: StoredPrefix) -> str:
            if stored.words is None:
                return texts("base", stored.name)
            return texts("tuned_model", stored.name, stored.words.short_label(texts.language, stored.pre_seq_len))

        return [(label(stored), stored.name) for stored in self.service.store.all()]

    def _second_default(self) -> str:
        """The base model beside a prefix; the last loaded prefix beside the base model."""
        store = self.service.store
        return store.base_name if store.default != store.base_name else store.names()[-1]

    def _heading(self, texts: Texts) -> str:
        names = self.service.store.names()
        kind = "subtitle" if len(names) > 1 else "subtitle_none"
        return f"<h1>ptuning</h1><p>{html.escape(texts(kind, names[0], len(names) - 1))}</p>"


def _options(
    model: str | None, compare: bool, second: str | None, max_length: float | None, top_p: float | None,
    temperature: float | None, history: Any, max_new_tokens: float | None, top_k: float | None,
    repetition_penalty: float | None, no_repeat_ngram_size: float | None, seed: float | None,
) -> AnswerOptions:  # fmt: skip
    """The page's settings as options; an empty field means the default. gradio shows an empty number as 0, so that 0 means
    none for settings in which 0 would make no sense."""
    values = {
        "top_p": top_p, "temperature": temperature, "max_new_tokens": max_new_tokens or None, "top_k": top_k,
        "repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size, "seed": seed or None,
    }  # fmt: skip
    settings = {name: value for name, value in values.items() if value is not None}
    names = (model, second) if compare else (model,)
    return AnswerOptions(names, settings, AnswerOptions.max_length if max_length is None else max_length, history or "tuned")


def _named(texts: Texts, name: str) -> dict[str, Any]:
    """Label, explanation and element id of a setting."""
    return {"label": texts(name), "info": texts(f"{name}_info"), "elem_id": name}


def _history_choices(texts: Texts) -> list[tuple[str, str]]:
    return [(texts(name), name) for name in ("tuned", "always", "never")]


def _messages(column: Column) -> list[dict[str, str]]:
    """The rounds as gradio's messages; a reply that has not begun is left out."""
    messages = []
    for query, reply in column.shown():
        messages.append({"role": "user", "content": literal(query)})
        if reply:
            messages.append({"role": "assistant", "content": safe_markdown(reply)})
    return messages


def _notes(column: Column, texts: Texts) -> str:
    if column.query is not None:
        return f'<span class="running">{html.escape(texts("answering"))}</span>'
    parts: Sequence[str] = [texts.note(note) for note in column.notes]
    return " · ".join(f"<span>{html.escape(part)}</span>" for part in parts)


def _hint(text: str, *, is_error: bool = False) -> str:
    return f'<div class="hint{" wrong" if is_error else ""}">{html.escape(text)}</div>'
