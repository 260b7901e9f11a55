"""The texts of the page, in Chinese and English."""

from __future__ import annotations

from ptuning.edges.language import Language
from ptuning.edges.web.sessions import Note

_TEXTS: dict[str, tuple[str, str]] = {  # name: (Chinese, English)
    "subtitle": ("{} · 前缀 {} 个", "{} · prefixes: {}"),
    "subtitle_none": ("{} · 没有加载前缀", "{} · no prefix loaded"),
    "chat_tab": ("对话", "Chat"),
    "reports_tab": ("评测", "Evaluation"),
    "question": ("问题", "Question"),
    "ask_here": ("输入问题，Enter 发送，Shift+Enter 换行", "Type a question. Enter sends, Shift+Enter makes a new line"),
    "send": ("发送", "Send"),
    "stop": ("停止", "Stop"),
    "retry": ("重新回答", "Retry"),
    "clear": ("清空对话", "Clear"),
    "greeting": ("### 你好\n在下面输入问题，就可以开始对话。", "### Hello\nType a question below to begin."),
    "model": ("由谁回答", "Answered by"),
    "second": ("并排的另一个", "Compared with"),
    "compare": ("并排对比", "Side by side"),
    "base": ("{} · 原始模型", "{} · base model"),
    "tuned_model": ("{} · {}", "{} · {}"),
    "max_length": ("最大长度", "Maximum length"),
    "max_length_info": ("提问、历史和回答合计的词元数", "Tokens of question, history and answer together"),
    "top_p": ("Top P", "Top P"),
    "top_p_info": ("从概率最高的这一部分里取样", "Sample from the most likely tokens up to this total probability"),
    "temperature": ("Temperature", "Temperature"),
    "temperature_info": ("0：每次都取最可能的词元", "0: the most likely token each time"),
    "more": ("更多设置", "More settings"),
    "history": ("历史", "History"),
    "history_info": ("提问时是否带上前面几轮", "Whether earlier rounds are part of the question"),
    "tuned": ("按前缀的训练方式", "as the prefix was tuned"),
    "always": ("总是带上", "always"),
    "never": ("从不带上", "never"),
    "max_new_tokens": ("回答的最大长度", "Maximum answer length"),
    "max_new_tokens_info": ("词元数；0：不另设限制", "In tokens; 0: no separate limit"),
    "top_k": ("Top K", "Top K"),
    "top_k_info": ("只从最可能的这些词元里取样；0：全部", "Sample from this many of the most likely tokens; 0: from all"),
    "repetition_penalty": ("重复惩罚", "Repetition penalty"),
    "repetition_penalty_info": ("大于 1：用过的词元更难再出现", "Above 1: tokens that were used already become less likely"),
    "no_repeat_ngram_size": ("不重复的片段长度", "No repeated n-gram of"),
    "no_repeat_ngram_size_info": ("词元数；0：不限制", "No sequence of this many tokens occurs twice; 0: no limit"),
    "seed": ("随机种子", "Seed"),
    "seed_info": ("0：每次不同", "0: a different answer each time"),
    "answering": ("正在回答……", "answering …"),
    "by": ("{}", "{}"),
    "rate": ("提问 {} + 回答 {} 词元，每秒 {:.1f}", "prompt {} + answer {} tokens, {:.1f}/s"),
    "counts": ("提问 {} + 回答 {} 词元", "prompt {} + answer {} tokens"),
    "without_history": ("提问没有带上历史", "asked without the earlier rounds"),
    "dropped": ("对话超出长度上限，最早的 {} 轮没有计入", "the conversation is too long: oldest {} rounds left out"),
    "forgotten": ("对话太长，最早的 {} 轮已不再保留", "the conversation is too long: oldest {} rounds no longer kept"),
    "truncated": ("已到长度上限，回答未完", "truncated at the length limit"),
    "stopped": ("已停止", "stopped"),
    "empty": ("回答是空的", "the answer is empty"),
    "failed": ("没有得到回答：{}", "no answer: {}"),
    "error": ("不能回答：{}", "cannot be answered: {}"),
    "no_room": (
        "最大长度 {} 容不下任何回答：请把“最大长度”调到 2 以上（发布时的设置是 2048）",
        "a maximum length of {} leaves no room for an answer: move the slider to 2 or more (published default: 2048)",
    ),
    "too_long": (
        "问题有 {} 个词元，而问题和回答合计最多 {} 个：请缩短问题（或调大“最大长度”）",
        "the question has {} tokens, but question and answer together may have {}: shorten it (or raise the maximum length)",
    ),
    "too_many_characters": (
        "问题超过 {} 个字符，任何设置下都装不下：请缩短问题",
        "the question has more than {} characters, which no setting allows: shorten it",
    ),
    "busy": ("排队的问题太多，请稍后再试", "too many questions are waiting; try again in a moment"),
    "unknown": (
        "选中的前缀已不在：{}。请按 ↻ 刷新列表后重选",
        "the selected prefix is no longer loaded: {}. Press ↻ and choose again",
    ),
    "report": ("训练或评测的文件夹", "Folder of a training or evaluation run"),
    "report_info": ("{} 里含有 report.html 的文件夹，最新的在前", "Folders below {} with a report.html, newest first"),
    "open": ("打开", "Open"),
    "no_report": (
        "{} 里还没有报告。bash scripts/train.sh 训练完会写一份",
        "There is no report below {} yet. bash scripts/train.sh writes one when it is done",
    ),
    "choose_report": ("在上面选一个文件夹", "Choose a folder above"),
    "bad_report": ("打不开：{}", "cannot be opened: {}"),
    "login": ("请输入启动服务时用 --auth 设置的用户名和密码", "User and password as given to the server by --auth"),
}


class Texts:
    """The texts of one language."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language

    def __call__(self, name: str, *values: object) -> str:
        """A text with its values."""
        return _TEXTS[name][0 if self.language == "zh" else 1].format(*values)

    def note(self, note: Note) -> str:
        """A note of a session."""
        return self(note[0], *note[1])


def text_names() -> list[str]:
    """The names of all texts."""
    return list(_TEXTS)
