"""What the terminal chat says, in Chinese and English."""

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
  clear                 forget the conversation
  stop, exit, Ctrl+D    leave
  Ctrl+C                stop the answer
  /prefix [NAME]        answer with another loaded prefix; without a name: list them
  /base                 answer with the base model, without a prefix
  /set [NAME VALUE]     change how answers are made; alone: list all, e.g. /set temperature 0.2
  /save FILE            write the conversation as JSON rows to train on (.json or .jsonl)
  /help                 this text
Tab completes commands; arrow keys edit the line and bring back earlier questions; pasted text may have several lines.""",
}

_TEXTS: dict[str, dict[Language, str]] = {
    "welcome": {
        "zh": "欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话：clear 清空对话历史，stop 终止程序，Ctrl+C 停止当前回答，"
        "/help 查看全部命令",
        "en": "Welcome to ChatGLM-6B. Type to talk: clear forgets the conversation, stop leaves, Ctrl+C stops the answer, "
        "/help lists all commands",
    },
    "user": {"zh": "用户：", "en": "You: "},
    "colon": {"zh": "：", "en": ": "},
    "named": {"zh": "（{}）", "en": " ({})"},
    "cleared": {"zh": "对话历史已清空", "en": "conversation forgotten"},
    "stopped": {"zh": "(已停止)", "en": "(stopped)"},
    "cut": {"zh": "(已到长度上限，回答未完)", "en": "(cut off at the length limit)"},
    "leave": {"zh": "输入 stop 终止程序", "en": "type stop to leave"},
    "dropped": {
        "zh": "(对话超出长度上限，最早的 {} 轮不再计入)",
        "en": "(the conversation is too long: its oldest {} rounds are left out from here on)",
    },
    "base": {"zh": "{}：原始模型，不带前缀", "en": "{}: the base model, no prefix"},
    "tuned": {"zh": "{}：{}，来自 {}", "en": "{}: {}, from {}"},
    "alone": {
        "zh": "（按单轮数据训练，提问不带历史；/set history on 可改）",
        "en": " (tuned on single questions: asked without history; /set history on changes that)",
    },
    "answering": {"zh": "当前模型 {}", "en": "answering: {}"},
    "saved": {"zh": "已保存 {} 轮到 {}", "en": "{} rounds written to {}"},
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
