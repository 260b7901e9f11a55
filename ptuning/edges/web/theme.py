"""The page's theme: gradio's base theme in the colours of the report, with the fonts of the user's own machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

_CSS = Path(__file__).resolve().parent.parent.parent / "assets" / "web" / "page.css"
_FONTS = (
    "system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei",
    "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei", "sans-serif",
)
_CODE_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Noto Sans Mono CJK SC", "monospace")


def theme() -> Any:
    """gradio's theme object. Fonts are given by name only: none is loaded from a font server."""
    return gr.themes.Base(
        primary_hue="blue", secondary_hue="slate", neutral_hue="slate", radius_size="lg", font=_FONTS, font_mono=_CODE_FONTS
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#12161c",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        background_fill_primary_dark="#1a2029",
        background_fill_secondary_dark="#12161c",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1a2029",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_border_width="0px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="#ffffff",
    )


def css() -> str:
    """The page's style sheet."""
    return _CSS.read_text(encoding="utf-8")
