"""The texts of the terminal chat, in Chinese and English."""

from __future__ import annotations

from ptuning.edges.language import Language
from ptuning.edges.output import inline

_HELP = {
    "zh": """\
  clear                 清空对话历史
  stop, exit, Ctrl+D    终止程序
  Ctrl+C                停止当前回答
  /prefix [NAME]        换用已加载的前缀；不写名字则列出全部
  /base                 换用原始模型（不带前缀）
  /set [NAME VALUE]     修改生成设置；不写则列出全部，例如 /set temperature 0.2
  /save FILE            把对话存为可用于训练的 JSON 行（.json 或 .jsonl）
  /help                 显示本说明
Tab 补全命令；方向键修改本行或取回以前的提问；可以粘贴多行文字。""",
    "en": """\
  clear                 clear the conversation
  stop, exit, Ctrl+D    quit
  Ctrl+C                stop the current answer
  /prefix [NAME]        switch to another loaded prefix; without a name: list them
  /base                 switch to the base model, without a prefix
  /set [NAME VALUE]     change a generation setting, e.g. /set temperature 0.2; without arguments: list all
  /save FILE            save the conversation as JSON rows for training (.json or .jsonl)
  /help                 show this text
Tab completes commands; arrow keys edit the line and recall earlier questions; pasted text may have several lines.""",
}

_TEXTS: dict[str, dict[Language, str]] = {
    "welcome": {
        "zh": "欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话：clear 清空对话历史，stop 终止程序，Ctrl+C 停止当前回答，"
        "/help 查看全部命令",
        "en": "Welcome to ChatGLM-6B. Type a question. clear: clear the conversation, stop: quit, Ctrl+C: stop the current "
        "answer, /help: all commands",
    },
    "user": {"zh": "用户：", "en": "You: "},
    "colon": {"zh": "：", "en": ": "},
    "named": {"zh": "（{}）", "en": " ({})"},
    "cleared": {"zh": "对话历史已清空", "en": "conversation cleared"},
    "stopped": {"zh": "(已停止)", "en": "(stopped)"},
    "truncated": {"zh": "(已到长度上限，回答未完)", "en": "(truncated at the length limit)"},
    "leave": {"zh": "输入 stop 终止程序", "en": "type stop to quit"},
    "dropped": {
        "zh": "(对话超出长度上限，最早的 {} 轮不再计入)",
        "en": "(the conversation is too long: its oldest {} rounds are left out from now on)",
    },
    "base": {"zh": "{}：原始模型，不带前缀", "en": "{}: the base model, no prefix"},
    "tuned": {"zh": "{}：{}，来自 {}", "en": "{}: {}, from {}"},
    "single_round": {
        "zh": "（按单轮数据训练，提问不带历史；/set history on 可改）",
        "en": " (tuned on single questions, so asked without history; /set history on changes that)",
    },
    "answering": {"zh": "当前模型 {}", "en": "answering: {}"},
    "saved": {"zh": "已保存 {} 轮到 {}", "en": "{} rounds saved to {}"},
    "error": {"zh": "错误：", "en": "error: "},
    "help": _HELP,  # type: ignore[dict-item]
}


class Texts:
    """The texts of one language."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language

    def __call__(self, name: str, *values: object) -> str:
        """A text with its values, each of which stays within a line."""
        return _TEXTS[name][self.language].format(*map(inline, values))
