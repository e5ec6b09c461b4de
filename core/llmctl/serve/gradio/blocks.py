"""The page: a conversation, how answers are drawn, and what was asked, as PaddleNLP's page has them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from html import escape
from typing import Any

import gradio as gr

from llmctl.serve.gradio.child import Shown
from llmctl.serve.gradio.talk import Api, Message, Refused, answered, before_answers, sent, undone
from llmctl.serve.words import CHINESE, translated

FONT = ("system-ui", "sans-serif")
LOOK = gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=("ui-monospace", "monospace")).set(
    body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
    block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
    input_placeholder_color="*neutral_600", input_placeholder_color_dark="*neutral_300",
)  # fmt: skip
STYLE = """
h1 { font-size: 1.1rem; margin: 0; }
#status p { min-height: 1.5em; margin: 0; }
"""
words = gr.I18n(**{"en": {text: text for text in CHINESE}, "zh": CHINESE, "zh-CN": CHINESE})
"""The browser chooses the language of labels."""


def edited(messages: list[Message], change: gr.EditData) -> list[Message]:
    """A conversation up to a text of the user that has changed."""
    place = change.index if isinstance(change.index, int) else change.index[0]
    return [*messages[:place], {"role": "user", "content": change.value}]


def line(text: str) -> str:
    """A line of text for whoever sees or hears the page."""
    return f'<p role="status">{escape(text)}</p>'


def language(request: gr.Request) -> str:
    """The header of a browser that says its language."""
    return str(request.headers.get("accept-language", ""))


def blocks(shown: Shown, api: Api) -> gr.Blocks:
    """The page.

    Args:
        shown: What is said of the server.
        api: The server's API.
    """
    default = shown.defaults.get
    with gr.Blocks(title=f"{shown.names[0]} · llmctl", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<h1>{escape(shown.names[0])}</h1>", padding=False)
        key = gr.Textbox(label=words("API key"), type="password", visible=shown.keys)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                talk = gr.Chatbot(
                    label=words("Conversation"), height="calc(100dvh - 350px)" if not shown.keys else "calc(100dvh - 450px)", min_height=240, show_label=False, buttons=["copy"], feedback_options=None, editable="user",
                    placeholder=words("Write a message below."), allow_file_downloads=False, elem_id="talk",
                )  # fmt: skip
                status = gr.HTML(line(""), padding=False, elem_id="status")
                text = gr.Textbox(
                    label=words("Message"),
                    placeholder=words("Enter sends, Shift+Enter breaks the line"),
                    lines=1,
                    max_lines=8,
                    elem_id="text",
                )
                with gr.Row():
                    send = gr.Button(words("Send"), variant="primary", min_width=80)
                    stop = gr.Button(words("Stop"), min_width=80)
                    again = gr.Button(words("Regenerate"), min_width=130)
                    undo = gr.Button(words("Undo"), min_width=80)
                    clear = gr.Button(words("Clear"), min_width=80)
            with gr.Column(scale=1, min_width=260):
                model = gr.Dropdown(
                    [*shown.names], value=shown.names[0], label=words("Model"), visible=len(shown.names) > 1
                )
                system = gr.Textbox(label=words("System message"), lines=1, max_lines=6)
                tokens = gr.Slider(
                    0, shown.tokens, 0, step=1, label=words("Max new tokens"), info=words("0 = as many as there is room for"),
                )  # fmt: skip
                top_k = gr.Slider(
                    0, max(100, default("top_k", 0)), default("top_k", 0), step=1, label="Top-k", info=words("0 = all tokens"),
                )  # fmt: skip
                top_p = gr.Slider(0, 1, default("top_p", 1.0), step=0.05, label="Top-p")
                heat = gr.Slider(
                    0, 2, default("temperature", 1.0), step=0.05, label=words("Temperature"), info=words("0 = the likeliest token"),
                )  # fmt: skip
                repeated = gr.Slider(
                    0.1, 10, default("repetition_penalty", 1.0), step=0.1, label=words("Repetition penalty")
                )
                with gr.Accordion(words("Raw context"), open=False):
                    raw = gr.JSON(show_label=False, container=False)
        settings = [key, model, system, tokens, top_k, top_p, heat, repeated]

        async def answer(
            request: gr.Request, messages: list[Message], *values: Any
        ) -> AsyncGenerator[tuple[Any, ...], None]:
            if not messages or messages[-1]["role"] != "user":
                return
            async with aclosing(answered(api, messages, *values, language=language(request))) as steps:
                async for conversation, said, body in steps:
                    yield conversation, line(said), body

        async def names(request: gr.Request, key: str, chosen: str) -> tuple[Any, str]:
            try:
                found = await api.names(key)
            except Refused as refused:
                return gr.skip(), line(translated(language(request), *refused.args))
            return gr.update(
                choices=found, value=chosen if chosen in found else found[0], visible=len(found) > 1
            ), line("")

        def stopped(request: gr.Request) -> str:
            return line(translated(language(request), "Stopped"))

        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        begun = [
            gr.on([text.submit, send.click], sent, [text, talk], [text, talk], **quick),
            again.click(before_answers, talk, talk, **quick),
            talk.edit(edited, talk, talk, **quick),
        ]
        asking = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        running = [one.then(answer, [talk, *settings], [talk, status, raw], **asking) for one in begun]
        stop.click(lambda: None, cancels=running, **quick).then(stopped, None, status, **quick)
        undo.click(undone, talk, [talk, text], cancels=running, **quick)
        gr.on(
            [clear.click, talk.clear], lambda: ([], line(""), None), None, [talk, status, raw], cancels=running, **quick
        )
        gr.on([page.load, key.change], names, [key, model], [model, status], **quick)
    page.queue(max_size=256)
    return page
