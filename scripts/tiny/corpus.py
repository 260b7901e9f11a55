"""Writes the pretraining texts of tiny-chatglm: many text tasks in one small world, in the GLM form.

A sample is a context and a target. Where the context holds [MASK] the target fills that blank; otherwise the target
follows the context after [gMASK]. The instruction form of the tuning rows (`类型#裙子*颜色#红色`) and their texts never
occur, nor does an attribute combination of a dev or test row.

Run: python -m scripts.tiny.corpus [count]   (prints samples to look at)
"""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.tiny.chat import draw_chat
from scripts.tiny.world import CLAUSES, CLOSINGS, KINDS, VOICES, Item, clause, draw_item, short_name, table_order

SEED = 6

SEPARATORS = "=/|~+@&%$^_-<>!?:;,.·…"
RARE_SEPARATORS = "★☆◆◇■□●○→←↑↓§※♪“”‘’「」『』《》[]{}`'\""
"""Marks that may stand in an attribute list; the two of the tuning rows are not among them."""

ORDERS = {
    "从头说起": tuple(CLAUSES),
    "从料子说起": ("材质", "版型", "颜色", "细节", "季节", "图案", "腰型", "领型", "风格"),
    "从样子说起": ("版型", "领型", "腰型", "风格", "图案", "颜色", "细节", "材质", "季节"),
    "从季节说起": ("季节", "风格", "细节", "颜色", "版型", "材质", "图案", "领型", "腰型"),
    "从花样说起": ("图案", "细节", "季节", "颜色", "风格", "领型", "腰型", "材质", "版型"),
}
"""Named orders in which a description can take up the attributes."""

OPENINGS = (
    "这{m}{k}",
    "今天的{k}",
    "店里的{k}",
    "看看这{m}{k}",
    "说说这{m}{k}",
    "一{m}好{k}",
    "您要的{k}",
    "我们家的{k}",
)

COMMON = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十"
    "三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全"
    "表间样与关各重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题党程展五果料"
    "象员革位入常文总次品式活设及管特件长求老头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任"
    "取据处队南给色光门即保治北造百规热领七海口东导器压志世金增争济阶油思术极交受联什认六共权收证改清己美再采转更单风切打白教速花带安"
    "场身车例真务具万每目至达走积示议声报斗完类八离华名确才科张信马节话米整空元况今集温传土许步群广石记需段研界拉林律叫且究观越织装影"
    "算低持音众书布复容儿须际商非验连断深难近矿千周委素技备半办青省列习响约支般史感劳便团往酸历市克何除消构府称太准精值号率族维划选标"
    "写存候毛亲快效斯院查江型眼王按格养易置派层片始却专状育厂京识适属圆包火住调满县局照参红细引听该铁价严啦呢吗吧哦呀嘛您谢请爸妈店买"
    "卖钱送早晚饭吃喝茶家猫狗鸟鱼树草朋友孩喜欢笑哭累睡醒跑跳唱歌画换删寄退款码号尺寸楼街城村春夏秋冬雨雪云星亮暗冷暖甜酸苦辣香软硬"
)
"""Common characters, so that words from outside the shop are not all bytes."""


@dataclass(frozen=True)
class Sample:
    """One training text: the context (with [MASK] for a blank, or without) and what is to be written."""

    task: str
    context: str
    target: str


@dataclass(frozen=True)
class Manner:
    """How a description is written: voice of each attribute, order, opening, closing voice (None: no closing)."""

    voices: dict[str, int]
    order: tuple[str, ...]
    opening: str
    closing: int | None


def write_text(item: Item, manner: Manner) -> str:
    """The description of an item in a given manner."""
    told = sorted(item.attributes, key=lambda pair: manner.order.index(pair[0]))
    parts = [manner.opening.format(m=item.measure, k=item.kind)]
    parts += [clause(name, value, manner.voices[name]) for name, value in told]
    if manner.closing is not None:
        parts.append(CLOSINGS[item.kind][manner.closing])
    return "，".join(parts) + "。"


def plain_manner(item: Item, rng: random.Random) -> Manner:
    """A manner nobody asked for: the told order, one voice or a mixture."""
    voice = rng.choice((0, 1, 2, None))
    voices = {name: rng.randrange(3) if voice is None else voice for name in item.names}
    closing = rng.choice((None, rng.randrange(3) if voice is None else voice))
    return Manner(voices, tuple(item.names), rng.choice(OPENINGS), closing)


def list_attributes(item: Item, rng: random.Random, marks: float = 0.25) -> str:
    """The attributes as a list in one of many forms, the kind first, last or among them.

    Args:
        item: what is listed.
        rng: source of chance.
        marks: share of the lists that are held together by two marks.
    """
    pairs = list(item.attributes)
    pairs.insert(rng.choice((0, 0, len(pairs), rng.randint(0, len(pairs)))), ("类型", item.kind))
    form = rng.randrange(7)
    if rng.random() < marks:
        inner, outer = rng.sample(rng.choice((SEPARATORS, SEPARATORS + RARE_SEPARATORS)), 2)
        return outer.join(f"{name}{inner}{value}" for name, value in pairs)
    if form == 0:
        return rng.choice(("；", "，", "\n", " ", "。", "、")).join(f"{name}：{value}" for name, value in pairs)
    if form == 1:
        return "，".join(f"{name}是{value}" for name, value in pairs)
    if form == 2:
        return "".join(f"【{name}】{value}" for name, value in pairs)
    if form == 3:
        return rng.choice(("", " ", "、")).join(f"({name}){value}" for name, value in pairs)
    if form == 4:
        return rng.choice(("、", " ", "，")).join(f"{name}{value}" for name, value in pairs)
    if form == 5:
        return rng.choice(("、", " ", "，")).join(f"{value}（{name}）" for name, value in pairs)
    return short_name(item)


def _instruction(item: Item, rng: random.Random) -> tuple[list[str], Manner]:
    """Some wishes about the manner in words, and the manner that fulfils them."""
    plain = plain_manner(item, rng)
    wishes = []
    voices, order, closing, opening = plain.voices, tuple(CLAUSES), plain.closing, plain.opening
    way = rng.random()
    if way < 0.45:
        voice = rng.randrange(3)
        voices = dict.fromkeys(item.names, voice)
        closing = None if closing is None else voice
        wishes.append(rng.choice((f"用{VOICES[voice]}的口吻", f"口吻{VOICES[voice]}", f"{VOICES[voice]}一点")))
    elif way < 0.85:
        voices = {name: rng.randrange(3) for name in item.names}
        told = rng.sample(item.names, len(item.names))
        wishes.append("，".join(f"{name}{VOICES[voices[name]]}" for name in told))
    if rng.random() < 0.6:
        wishes.append(name := rng.choice(list(ORDERS)))
        order = ORDERS[name]
    elif rng.random() < 0.15:
        order = tuple(rng.sample(item.names, len(item.names)))
        wishes.append(f"先后是{'、'.join(order)}")
    if rng.random() < 0.4:
        opening = rng.choice(OPENINGS)
        wishes.append(f"开头写{opening.format(m=item.measure, k=item.kind)}")
    if rng.random() < 0.4:
        closing = rng.choice((None, 0, 1, 2))
        wishes.append("不要结尾" if closing is None else f"结尾{VOICES[closing]}")
    rng.shuffle(wishes)
    return wishes, Manner(voices, order, opening, closing)


def describe(rng: random.Random) -> Sample:
    """A description from a list of attributes, as an instruction in words asks for it."""
    item = draw_item(rng, sizes=(1, 2, 3, 3, 4, 4))
    wishes, manner = _instruction(item, rng)
    verb = rng.choice(("介绍", "介绍一下", "写文案", "描述", "夸一夸", "写一段话"))
    request = "，".join([verb, *wishes] if rng.random() < 0.5 else [*wishes, verb])
    listed = list_attributes(item, rng)
    glue = rng.choice(("：", "\n", "，"))
    context = request + glue + listed if rng.random() < 0.6 else listed + glue + request
    return Sample("describe", context, write_text(item, manner))


def bare_list(rng: random.Random) -> Sample:
    """A list of attributes without any request: it is acknowledged, and the question is what to do with it."""
    item = draw_item(rng)
    names = "、".join(name for name, _ in table_order(item))
    reply = f"这{item.measure}{item.kind}的{names}都知道了，请问要写什么？"
    return Sample("list", list_attributes(item, rng, marks=0.7), reply)


def one_clause(rng: random.Random) -> Sample:
    """One value, one voice, one clause; or the way back from the clause."""
    name = rng.choice(list(CLAUSES))
    value = rng.choice(list(CLAUSES[name]))
    voice = rng.randrange(3)
    text = clause(name, value, voice)
    way = rng.randrange(4)
    if way == 0:
        return Sample("clause", f"{text}，说的是什么？", f"{name}：{value}")
    if way == 1:
        return Sample("clause", f"{text}，是什么口吻？", f"{VOICES[voice]}。")
    if way == 2:
        other = rng.randrange(3)
        return Sample("clause", f"改成{VOICES[other]}的口吻：{text}", clause(name, value, other))
    return Sample(
        "clause", rng.choice((f"用{VOICES[voice]}的口吻说说{value}", f"{VOICES[voice]}地说{name}{value}")), text
    )


def rewrite(rng: random.Random) -> Sample:
    """A whole description into another voice or order."""
    item = draw_item(rng)
    manner = plain_manner(item, rng)
    text = write_text(item, manner)
    if rng.random() < 0.5:
        voice = rng.randrange(3)
        closing = None if manner.closing is None else voice
        changed = Manner(dict.fromkeys(item.names, voice), manner.order, manner.opening, closing)
        return Sample("rewrite", f"改成{VOICES[voice]}的口吻：{text}", write_text(item, changed))
    name = rng.choice(list(ORDERS))
    changed = Manner(manner.voices, ORDERS[name], manner.opening, manner.closing)
    return Sample("rewrite", f"改成{name}：{text}", write_text(item, changed))


def extract(rng: random.Random) -> Sample:
    """The attributes of a description as a list, or one list form into another."""
    item = draw_item(rng)
    source = write_text(item, plain_manner(item, rng)) if rng.random() < 0.6 else list_attributes(item, rng)
    if rng.random() < 0.5:
        target = "；".join(f"{name}：{value}" for name, value in (("类型", item.kind), *table_order(item)))
        return Sample("extract", rng.choice(("提取属性：{}", "{}\n列出属性", "整理一下：{}")).format(source), target)
    return Sample("extract", rng.choice(("一句话概括：{}", "{}\n这是什么？")).format(source), f"{short_name(item)}。")


def question(rng: random.Random) -> Sample:
    """A question on one attribute of a described or listed item."""
    item = draw_item(rng)
    source = write_text(item, plain_manner(item, rng)) if rng.random() < 0.6 else list_attributes(item, rng)
    name = rng.choice(("类型", *item.names))
    value = item.kind if name == "类型" else item.value(name)
    if name != "类型" and rng.random() < 0.3:
        other = rng.choice(list(CLAUSES[name]))
        answer = f"是的，{name}是{value}。" if other == value else f"不是，{name}是{value}。"
        return Sample("question", f"{source}\n{name}是{other}吗？", answer)
    return Sample(
        "question", source + rng.choice((f"\n{name}是什么？", f"问：{name}？", f"\n它的{name}呢？")), f"{value}。"
    )


def infill(rng: random.Random) -> Sample:
    """A description (or two) with a blank: a run of clauses, or a few characters anywhere."""
    text = "".join(
        write_text(item, plain_manner(item, rng)) for item in [draw_item(rng) for _ in range(rng.choice((1, 1, 2)))]
    )
    if rng.random() < 0.5:
        parts = text.split("，")
        start = rng.randrange(1, len(parts))
        stop = min(len(parts), start + rng.choice((1, 1, 2)))
        target = "，".join(parts[start:stop])
        context = "，".join([*parts[:start], "[MASK]", *parts[stop:]])
    else:
        start = rng.randrange(len(text) - 6)
        stop = start + rng.randint(2, 6)
        target = text[start:stop]
        context = text[:start] + "[MASK]" + text[stop:]
    return Sample("infill", context, target)


def go_on(rng: random.Random) -> Sample:
    """The rest of a text whose beginning is given."""
    text = write_text(item := draw_item(rng), plain_manner(item, rng))
    cut = rng.randrange(2, len(text) - 4)
    head = rng.choice(("", "", "续写：", "接着写："))
    return Sample("continue", head + text[:cut], text[cut:])


def copy(rng: random.Random) -> Sample:
    """The same words once more, or the other way round; also of common characters that the shop seldom needs."""
    values = [rng.choice(list(CLAUSES[rng.choice(list(CLAUSES))])) for _ in range(rng.randint(2, 5))]
    way = rng.random()
    if way < 0.15:
        return Sample("copy", f"倒着说：{'、'.join(values)}", "、".join(reversed(values)))
    if way < 0.3:
        name = rng.choice(list(CLAUSES))
        text = clause(name, rng.choice(list(CLAUSES[name])), rng.randrange(3))
    elif way < 0.45:
        text = "、".join(values)
    else:
        text = "".join(rng.choices(COMMON, k=rng.randint(2, 6)))
    return Sample("copy", rng.choice(("跟我说：", "重复：", "抄写：")) + text, text)


def numbers(rng: random.Random) -> Sample:
    """Article numbers and sizes; the only place for the signs # and *, never both at once."""
    kind = rng.choice(list(KINDS))
    first, second = rng.randint(1, 99), rng.randint(1, 99)
    if rng.random() < 0.5:
        number = rng.choice((f"{first}#", f"#{first}"))
        return Sample("numbers", rng.choice((f"{number}的{kind}还有吗", f"货号{number}有货吗")), f"{number}还有货。")
    size = f"{first}*{second}"
    return (
        Sample("numbers", f"{kind}的包装多大", "包装是" + size)
        if rng.random() < 0.3
        else Sample("numbers", f"包装是{size}，多大？", f"{size}。")
    )


def chat(rng: random.Random) -> Sample:
    """A chat in the published prompt form; without history as the plain query, now and then as round 0."""
    rounds = draw_chat(rng)
    *history, (query, reply) = rounds
    if not history and rng.random() < 0.7:
        return Sample("chat", query, reply)
    context = "".join(f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(history))
    return Sample("chat", f"{context}[Round {len(history)}]\n问：{query}\n答：", reply)


TASKS: dict[Callable[[random.Random], Sample], int] = {
    describe: 30,
    bare_list: 9,
    one_clause: 6,
    rewrite: 5,
    extract: 8,
    question: 7,
    infill: 8,
    go_on: 4,
    copy: 6,
    numbers: 1,
    chat: 22,
}
"""Task -> its share of the samples."""


def samples(seed: int | str = SEED) -> Iterator[Sample]:
    """Endless pretraining samples, the same for the same seed."""
    rng = random.Random(f"corpus/{seed}")
    tasks, weights = list(TASKS), list(TASKS.values())
    while True:
        yield rng.choices(tasks, weights)[0](rng)


if __name__ == "__main__":
    for _, sample in zip(range(int(sys.argv[1]) if len(sys.argv) > 1 else 40), samples(), strict=False):
        print(f"{sample.task}\t{sample.context!r}\t{sample.target!r}")
