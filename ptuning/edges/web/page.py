"""The page itself: where things stand, and what happens when they are pressed. What happens then is in ``answers.py``."""

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
from ptuning.edges.web.answers import Answers, Wishes
from ptuning.edges.web.reports import framed, read_report, reports_below
from ptuning.edges.web.safe_markdown import literal, safe_markdown
from ptuning.edges.web.texts import Texts
from ptuning.edges.web.visits import Column, Visit, Visits
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


_EXPLAINED = (
    "max_length", "top_p", "temperature", "history", "max_new_tokens", "top_k", "repetition_penalty",
    "no_repeat_ngram_size", "seed",
)  # fmt: skip
"""Settings that have a line of explanation below their name."""

SETTLING = 0.3
"""Seconds after the end of a stream in which no other is begun: its connection is being closed."""


class Page:
    """The page over one service.

    Args:
        service: already answering.
        answers: over the same service.
        language: of everybody, or by each reader's browser.
        report_root: reports below it can be opened.
    """

    def __init__(self, service: ChatService, answers: Answers, language: LanguageChoice, report_root: Path) -> None:
        self.service, self.answers, self.language, self.report_root = service, answers, language, report_root
        self.visits = Visits()
        with gr.Blocks(title="ptuning · ChatGLM-6B", analytics_enabled=False, fill_width=True) as self.blocks:
            self._lay_out(Texts("zh" if language == "auto" else language))
            self._wire()
        # As many at a time as there are readers: the engine has its own queue, and says so when it is full.
        self.blocks.queue(default_concurrency_limit=None, api_open=True)

    # ---- where things stand

    def _lay_out(self, texts: Texts) -> None:
        with gr.Row(elem_id="top"):
            self.heading = gr.HTML(self._heading(texts), elem_id="heading")
            self.languages = gr.Radio(
                _LANGUAGES, value=texts.language, show_label=False, container=False, elem_id="language", min_width=150
            )
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab(texts("chat_tab"), id="chat") as self.chat_tab, gr.Row(elem_id="chat"):
                with gr.Column(scale=7, min_width=300, elem_id="talk"):
                    self._lay_out_talk(texts)
                with gr.Column(scale=3, min_width=270, elem_id="settings"):
                    self._lay_out_settings(texts)
            with gr.Tab(texts("reports_tab"), id="reports") as self.reports_tab:
                self._lay_out_reports(texts)

    def _lay_out_talk(self, texts: Texts) -> None:
        with gr.Row(elem_id="columns"):
            made = [self._lay_out_column(texts, number) for number in (1, 2)]
        self.columns, self.chats, self.notes = ([parts[place] for parts in made] for place in range(3))
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

    def _lay_out_column(self, texts: Texts, number: int) -> tuple[Any, Any, Any]:
        with gr.Column(min_width=260, visible=number == 1, elem_id=f"column-{number}") as column:
            chat = gr.Chatbot(
                label=self.service.store.default, height="100%", elem_id=f"chat-{number}", buttons=["copy"], layout="bubble",
                placeholder=texts("greeting"), sanitize_html=True, latex_delimiters=_FORMULAS, feedback_options=None,
            )
            note = gr.HTML("", elem_id=f"note-{number}", elem_classes="note")
        return column, chat, note

    def _lay_out_settings(self, texts: Texts) -> None:
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
            self.history = gr.Radio(_history_uses(texts), value="tuned", **_named(texts, "history"))
            self.max_new_tokens = gr.Number(0, precision=0, **_named(texts, "max_new_tokens"))
            self.top_k = gr.Number(defaults.top_k, precision=0, **_named(texts, "top_k"))
            self.repetition_penalty = gr.Number(
                defaults.repetition_penalty, step=0.05, **_named(texts, "repetition_penalty")
            )
            self.no_repeat_ngram_size = gr.Number(
                defaults.no_repeat_ngram_size, precision=0, **_named(texts, "no_repeat_ngram_size")
            )
            self.seed = gr.Number(0, precision=0, **_named(texts, "seed"))

    def _lay_out_reports(self, texts: Texts) -> None:
        with gr.Row(elem_id="choose-report"):
            self.report = gr.Dropdown(
                [], value=None, label=texts("report"), info=texts("report_info", self.report_root), elem_id="report",
                allow_custom_value=True, scale=5,
            )
            self.open = gr.Button(texts("open"), variant="primary", elem_id="open", min_width=120, scale=1)
        self.report_page = gr.HTML("", elem_id="report-page")

    # ---- what happens

    def _wire(self) -> None:
        asked = [
            self.model, self.compare, self.second, self.max_length, self.top_p, self.temperature, self.history,
            self.max_new_tokens, self.top_k, self.repetition_penalty, self.no_repeat_ngram_size, self.seed,
        ]
        talk = [*self.chats, *self.notes, self.message, self.box, self.send, self.stop, self.retry]
        labels = [
            self.heading, self.languages, self.chat_tab, self.reports_tab, self.model, self.compare, self.second,
            self.clear, self.more, self.report, self.open, self.report_page,
            *(getattr(self, name) for name in _EXPLAINED),
        ]  # fmt: skip
        # All streams of a page come over one connection, which gradio ends with the last of them; what is asked in that
        # moment is never heard of again. So only answers are streamed, and whatever is done at once goes its own way.
        # What comes in is checked already (guard.py), and what is out of range is told in the page's words (answers.py):
        # gradio's own conversion would answer such a mistake with a traceback in the log and nothing on the page.
        every: dict[str, Any] = {"show_progress": "hidden", "preprocess": False}
        stream: dict[str, Any] = every | {"trigger_mode": "multiple"}
        quick: dict[str, Any] = every | {"queue": False}
        taken = gr.on(
            [self.box.submit, self.send.click], self._on_take, self.box, [self.box, self.asked],
            api_visibility="private", **quick,
        )  # fmt: skip
        taken.then(self._on_send, [self.asked, *asked], talk, api_name="send", **stream)
        self.retry.click(self._on_retry, asked, talk, api_name="retry", **stream)
        self.stop.click(self._on_stop, None, None, api_name="stop", **quick)
        self.clear.click(self._on_clear, None, talk, api_name="clear", **quick)
        self.compare.input(self._on_compare, self.compare, [*self.columns, self.second, *talk], api_name="compare", **quick)
        chosen = [self.model, self.second]
        self.refresh.click(self._on_refresh, chosen, [*chosen, *self.chats, self.heading], api_name="refresh", **quick)
        gr.on([one.input for one in chosen], self._on_choose, chosen, self.chats, api_visibility="private", **quick)
        self.languages.input(self._on_language, [self.languages, *chosen], [*labels, *talk], api_name="language", **quick)
        self.reports_tab.select(self._on_reports, self.report, self.report, api_name="reports", **quick)
        self.open.click(self._on_open, self.report, self.report_page, api_name="open_report", **quick)
        self.report.input(self._on_open, self.report, self.report_page, api_visibility="private", **quick)
        self.blocks.load(self._on_load, chosen, [*labels, *talk], api_visibility="private", **quick)
        self.blocks.unload(self._on_leave)

    async def _on_take(self, request: gr.Request, question: str | None) -> Updates:
        """The question out of the input, if it can be asked now. A step of its own, because gradio's client may pass over
        what a stream says for a moment only."""
        visit = self._visit(request)[0]
        question = question or ""
        if visit.run is not None or not question.strip() or self.answers.refuses(visit, question):
            return {self.box: gr.update(), self.asked: ""}
        await asyncio.sleep(max(0.0, visit.ended + SETTLING - time.monotonic()))
        return {self.box: "", self.asked: question}

    async def _on_send(self, request: gr.Request, question: str, *wishes: Any) -> AsyncIterator[Updates]:
        visit, texts = self._visit(request)
        yield self._talk(visit, texts)
        async for _ in self.answers.send(visit, question or "", _wishes(*wishes)):
            yield self._talk(visit, texts)
        visit.ended = time.monotonic()

    async def _on_retry(self, request: gr.Request, *wishes: Any) -> AsyncIterator[Updates]:
        visit, texts = self._visit(request)
        yield self._talk(visit, texts)
        async for _ in self.answers.retry(visit, _wishes(*wishes)):
            yield self._talk(visit, texts)
        visit.ended = time.monotonic()

    def _on_stop(self, request: gr.Request) -> None:
        self._visit(request)[0].stop()

    def _on_clear(self, request: gr.Request) -> Updates:
        visit, texts = self._visit(request)
        visit.clear()
        return self._talk(visit, texts)

    def _on_compare(self, on: bool, request: gr.Request) -> Updates:
        visit, texts = self._visit(request)
        visit.compare(on)
        shown: Updates = {self.columns[1]: gr.update(visible=on), self.second: gr.update(visible=on)}
        return shown | self._talk(visit, texts)

    def _on_refresh(self, model: str | None, second: str | None, request: gr.Request) -> Updates:
        texts = self._visit(request)[1]
        return self._models(texts, model, second) | {self.heading: self._heading(texts)}

    def _on_choose(self, model: str | None, second: str | None) -> Updates:
        return {chat: gr.update(label=name) for chat, name in zip(self.chats, (model, second), strict=True)}

    def _on_language(
        self, language: Language, model: str | None, second: str | None, request: gr.Request
    ) -> Updates:
        visit, _ = self._visit(request)
        visit.language = language
        return self._everything(visit, Texts(language), model, second)

    def _on_load(self, model: str | None, second: str | None, request: gr.Request) -> Updates:
        visit, texts = self._visit(request)
        return self._everything(visit, texts, model, second)

    def _on_leave(self, request: gr.Request) -> None:
        self.visits.leave(request.session_hash)

    def _on_reports(self, chosen: str | None) -> Any:
        names = reports_below(self.report_root)
        return gr.update(choices=names, value=chosen or (names[0] if names else None))

    def _on_open(self, folder: str | None, request: gr.Request) -> str:
        texts = self._visit(request)[1]
        if not folder or not str(folder).strip():
            return _hint(texts("choose_report" if reports_below(self.report_root) else "no_report", self.report_root))
        try:
            return framed(read_report(self.report_root, str(folder)), str(folder))
        except UserError as error:
            return _hint(texts("bad_report", error), wrong=True)

    # ---- what is shown

    def _visit(self, request: gr.Request) -> tuple[Visit, Texts]:
        visit = self.visits.of(request.session_hash)
        if visit.language is not None:
            return visit, Texts(visit.language)
        if self.language != "auto":
            return visit, Texts(self.language)
        return visit, Texts(language_of(dict(request.headers).get("accept-language")))

    def _talk(self, visit: Visit, texts: Texts) -> Updates:
        """The conversation as it stands, and what can be pressed now."""
        busy = visit.run is not None
        error = "" if visit.error is None else _hint(texts.note(visit.error), wrong=True)
        shown: Updates = {self.message: gr.update(value=error, visible=bool(error))}
        for column, chat, note in zip(visit.columns, self.chats, self.notes, strict=True):
            shown[chat] = gr.update(value=_messages(column), placeholder=texts("greeting"))
            shown[note] = _notes(column, texts)
        shown[self.box] = gr.update() if visit.returned is None else gr.update(value=visit.returned)
        visit.returned = None
        shown[self.send] = gr.update(interactive=not busy, value=texts("send"))
        shown[self.stop] = gr.update(interactive=busy, value=texts("stop"))
        shown[self.retry] = gr.update(interactive=not busy and bool(visit.columns[0].rounds), value=texts("retry"))
        return shown

    def _everything(self, visit: Visit, texts: Texts, model: str | None, second: str | None) -> Updates:
        shown = self._labels(texts) | self._talk(visit, texts)
        more = self._models(texts, model, second) | {self.box: gr.update(placeholder=texts("ask_here"))}
        for component, update in more.items():
            shown[component] = shown.get(component, {}) | update
        return shown

    def _labels(self, texts: Texts) -> Updates:
        """Everything that has words on it."""
        shown: Updates = {
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
        for name in _EXPLAINED:
            shown[getattr(self, name)] = gr.update(label=texts(name), info=texts(f"{name}_info"))
        shown[self.history] = gr.update(
            label=texts("history"), info=texts("history_info"), choices=_history_uses(texts)
        )
        return shown

    def _models(self, texts: Texts, model: str | None, second: str | None) -> Updates:
        """What can be chosen now; a choice that is gone becomes the default."""
        names, choices = self.service.store.names(), self._choices(texts)
        first = model if model in names else self.service.store.default
        other = second if second in names else self._second_default()
        return {
            self.model: gr.update(choices=choices, value=first, label=texts("model")),
            self.second: gr.update(choices=choices, value=other, label=texts("second")),
            **self._on_choose(first, other),
        }

    def _choices(self, texts: Texts) -> list[tuple[str, str]]:
        def shown(one: StoredPrefix) -> str:
            if one.words is None:
                return texts("base", one.name)
            return texts("tuned_model", one.name, one.words.short_label(texts.language, one.pre_seq_len))

        return [(shown(one), one.name) for one in self.service.store.all()]

    def _second_default(self) -> str:
        """The base model beside a prefix; beside the base model whatever there is."""
        store = self.service.store
        return store.base_name if store.default != store.base_name else store.names()[-1]

    def _heading(self, texts: Texts) -> str:
        names = self.service.store.names()
        kind = "subtitle" if len(names) > 1 else "subtitle_none"
        return f"<h1>ptuning</h1><p>{html.escape(texts(kind, names[0], len(names) - 1))}</p>"


def _wishes(
    model: str | None, compare: bool, second: str | None, max_length: float | None, top_p: float | None,
    temperature: float | None, history: Any, max_new_tokens: float | None, top_k: float | None,
    repetition_penalty: float | None, no_repeat_ngram_size: float | None, seed: float | None,
) -> Wishes:  # fmt: skip
    """The settings of the page; a field that was emptied is as published. gradio shows a number that is not given as 0, so
    0 stands for none where 0 itself makes no sense."""
    given = {
        "top_p": top_p, "temperature": temperature, "max_new_tokens": max_new_tokens or None, "top_k": top_k,
        "repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size, "seed": seed or None,
    }  # fmt: skip
    settings = {name: value for name, value in given.items() if value is not None}
    names = (model, second) if compare else (model,)
    return Wishes(names, settings, Wishes.max_length if max_length is None else max_length, history or "tuned")


def _named(texts: Texts, name: str) -> dict[str, Any]:
    """Name and explanation of a setting."""
    return {"label": texts(name), "info": texts(f"{name}_info"), "elem_id": name}


def _history_uses(texts: Texts) -> list[tuple[str, str]]:
    return [(texts(name), name) for name in ("tuned", "always", "never")]


def _messages(column: Column) -> list[dict[str, str]]:
    """Rounds in gradio's form; a reply that has not begun is no message yet."""
    found = []
    for query, reply in column.shown():
        found.append({"role": "user", "content": literal(query)})
        if reply:
            found.append({"role": "assistant", "content": safe_markdown(reply)})
    return found


def _notes(column: Column, texts: Texts) -> str:
    if column.query is not None:
        return f'<span class="running">{html.escape(texts("answering"))}</span>'
    parts: Sequence[str] = [texts.note(note) for note in column.notes]
    return " · ".join(f"<span>{html.escape(part)}</span>" for part in parts)


def _hint(text: str, *, wrong: bool = False) -> str:
    return f'<div class="hint{" wrong" if wrong else ""}">{html.escape(text)}</div>'
