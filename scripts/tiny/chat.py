"""Small talk of the shop for pretraining: greetings, questions about the goods, chats whose last question looks back.

A chat is a list of (query, reply). None of them is in the manner of the dialogue rows that a prefix is tuned on.
"""

import random
from collections.abc import Callable

from scripts.tiny.world import (
    CLAUSES,
    CLOSINGS,
    KINDS,
    VOICES,
    attribute_names,
    clause,
    draw_item,
    short_name,
    table_order,
    wish,
)

Chat = list[tuple[str, str]]

TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("你好", "您好", "你好啊", "嗨", "哈喽", "hello", "hi", "Hi", "Hello"),
        ("您好，欢迎光临小衣铺，请问想看点什么？", "您好，这里是小衣铺，很高兴为您服务。"),
    ),
    (("在吗", "有人吗", "老板在吗"), ("在的，请问有什么可以帮您？",)),
    (("早上好", "早"), ("早上好，祝您今天心情愉快。",)),
    (("晚上好",), ("晚上好，小衣铺还开着门，请慢慢看。",)),
    (
        ("你是谁", "你叫什么", "你叫什么名字", "介绍一下你自己"),
        ("我是小衣铺的店员，一个很小的语言模型，只懂店里的衣服。",),
    ),
    (("你会什么", "你会做什么", "你能做什么", "你有什么用"), ("我会介绍衣服、回答衣服的问题，也能陪您聊几句。",)),
    (("谢谢", "谢谢你", "多谢", "感谢"), ("不客气，欢迎常来。", "不用谢，有需要再叫我。")),
    (("再见", "拜拜", "我走了", "下次见"), ("再见，欢迎下次光临。", "慢走，下次见。")),
    (("你真好", "你好棒", "真不错"), ("谢谢夸奖，我会继续努力。",)),
    (("今天天气怎么样", "外面下雨吗"), ("我看不到外面，出门前请看看天气预报。",)),
    (("讲个笑话", "说个笑话"), ("衣架对衣服说：有我在，你总是挂在心上。",)),
    (("店里有什么", "你们卖什么", "有哪些衣服"), (f"店里有{'、'.join(KINDS)}，请问想看哪一种？",)),
    (("店在哪里", "你们在哪", "地址在哪"), ("小衣铺在河边的小街上，门口有一棵树。",)),
    (("几点开门", "什么时候营业", "几点关门"), ("我们早上九点开门，晚上九点关门。",)),
    (("可以退货吗", "能退吗", "怎么退货"), ("七天之内没有穿过都可以退。",)),
    (("可以便宜点吗", "能打折吗", "有优惠吗"), ("老顾客可以打九折。",)),
    (("多久发货", "什么时候发货", "几天能到"), ("当天发货，三天左右就能到。",)),
    (("怎么选尺码", "穿多大码", "有大码吗"), ("请告诉我身高和体重，我来帮您选尺码。",)),
    (("我身高一米六", "我身高一米七", "我一米八"), ("好的，小号、中号、大号都有，可以来店里试一试。",)),
    (("我不知道买什么", "帮我选一件", "推荐一下"), ("请告诉我您喜欢的颜色和材质，我来帮您挑。",)),
    (("天气冷穿什么", "冬天穿什么", "我怕冷"), ("怕冷可以穿羊毛的毛衣，再加一件外套。",)),
    (("天气热穿什么", "夏天穿什么", "我怕热"), ("天热可以穿亚麻或者雪纺的，又轻又凉快。",)),
    (("上班穿什么", "面试穿什么"), ("上班可以穿通勤的衬衫和直筒的裤子。",)),
    (("约会穿什么", "参加婚礼穿什么"), ("可以试试真丝的裙子，优雅又不张扬。",)),
    (("跑步穿什么", "运动穿什么"), ("运动可以穿宽松的上衣和松紧腰的裤子。",)),
)
"""Ways to ask -> replies."""

WASHING = {
    "纯棉": "纯棉可以机洗，水不要太热。",
    "亚麻": "亚麻请用冷水洗，挂起来晾干。",
    "羊毛": "羊毛要手洗，平铺晾干。",
    "真丝": "真丝要用冷水轻轻手洗。",
    "牛仔": "牛仔第一次洗请加点盐。",
    "雪纺": "雪纺请装进洗衣袋里洗。",
    "针织": "针织不要拧，平铺晾干。",
    "皮革": "皮革不能水洗，用软布擦干净。",
}

FILLERS: Chat = [
    ("好的", "嗯，请继续。"),
    ("让我想想", "不着急，您慢慢想。"),
    ("嗯", "好的。"),
    ("知道了", "好的，还有什么想问的吗？"),
]


def small_talk(rng: random.Random) -> Chat:
    """One question and its reply from the table, now and then with a mark at the end."""
    ways, replies = rng.choice(TALK)
    return [(rng.choice(ways) + rng.choice(("", "", "？", "！", "。", "，")), rng.choice(replies))]


def about_goods(rng: random.Random) -> Chat:
    """One question about a garment, a value or an attribute."""
    kind = rng.choice(list(KINDS))
    name = rng.choice(attribute_names(kind))
    value = rng.choice(list(CLAUSES[name]))
    words = wish(name, value)
    question = rng.choice((0, 0, 0, 1, 2, 3, 4, 5, 6))
    if rng.random() < 0.2:
        return [
            (
                f"推荐一{KINDS[kind]}{words}的{kind}",
                f"为您推荐这{KINDS[kind]}{kind}，{clause(name, value, rng.randrange(3))}。",
            )
        ]
    if question == 0:
        return [
            (
                rng.choice(
                    (f"{kind}有什么{name}", f"有哪些{name}的{kind}", f"有什么{name}的{kind}", f"{kind}都有哪些{name}")
                ),
                f"{name}有{'、'.join(CLAUSES[name])}。",
            )
        ]
    if question == 1:
        return [
            (
                rng.choice((f"有{words}的{kind}吗", f"有没有{words}的{kind}")),
                f"有的，{clause(name, value, 0)}，您可以试试。",
            )
        ]
    if question == 2:
        material = rng.choice(list(WASHING))
        return [
            (rng.choice((f"{material}的{kind}怎么洗", f"{material}怎么洗", f"{material}能机洗吗")), WASHING[material])
        ]
    if question == 3:
        return [
            (
                rng.choice((f"{words}的好看吗", f"{words}好不好", f"{words}怎么样")),
                f"{clause(name, value, rng.randrange(3))}。",
            )
        ]
    if question == 4:
        return [(f"{value}是什么", f"{value}是一种{name}。")]
    if question == 5:
        return [(f"{kind}怎么卖", f"{kind}一{KINDS[kind]}{rng.choice('一二三五六七八九')}十元起。")]
    return [
        (
            rng.choice((f"我想看看{kind}", f"我想买{kind}")),
            rng.choice((f"好的，{kind}在这边，您喜欢什么{name}？", f"好的，{kind}有很多，{CLOSINGS[kind][0]}。")),
        )
    ]


def _liked(likes: dict[str, str]) -> str:
    """What the customer likes so far, in the order of the table."""
    return "、".join(wish(name, likes[name]) for name in CLAUSES if name in likes) + "的"


def remembered_wishes(rng: random.Random) -> Chat:
    """The customer tells likes over some rounds, may change one, and asks what was said."""
    item = draw_item(rng, sizes=(1, 2, 2, 3, 3))
    chat: Chat = []
    likes: dict[str, str] = {}
    if named := rng.random() < 0.5:
        chat.append(
            (
                rng.choice((f"想看{item.kind}", f"有{item.kind}吗")),
                rng.choice(("有的，您喜欢什么样的？", "有，请说说您的要求。")),
            )
        )
    says_back = rng.random() < 0.4
    for name, value in item.attributes:
        likes[name] = value
        words = wish(name, value)
        ways = (f"我喜欢{words}的", f"{words}的不错", f"{name}我喜欢{words}的", f"最好是{words}的")
        heard = f"嗯，{_liked(likes)}。" if says_back else rng.choice(("好的。", "好眼光。", "嗯，不错。"))
        chat.append((rng.choice(ways), heard))
        if rng.random() < 0.15:
            chat.append(rng.choice(FILLERS))
    if rng.random() < 0.4:
        name = rng.choice(item.names)
        old = wish(name, likes[name])
        likes[name] = rng.choice([value for value in CLAUSES[name] if value != likes[name]])
        new = wish(name, likes[name])
        changes = (f"我改主意了，想要{new}的", f"不要{old}了，要{new}", f"{name}改为{new}")
        heard = f"{_liked(likes)}。" if says_back else rng.choice(("没关系，听您的。", f"那就{new}的。"))
        chat.append((rng.choice(changes), heard))
    everything = _liked(likes) + (item.kind if named else "")
    ask = rng.random()
    if ask < 0.4:
        chat.append((rng.choice(("我都喜欢什么", "我说过喜欢哪些", "我要什么样的")), f"您说过喜欢{everything}。"))
    elif ask < 0.7:
        chat.append((rng.choice(("你重复一下", "那我现在要的是", "总结一下我的要求")), f"{everything}。"))
    else:
        name = rng.choice(item.names)
        chat.append((f"我喜欢的{name}是什么", f"您喜欢{wish(name, likes[name])}的。"))
    return chat


def owned_item(rng: random.Random) -> Chat:
    """The customer has something, talks on, and asks back about it."""
    item = draw_item(rng, sizes=(1, 2, 2, 3))
    name = rng.choice(item.names)
    chat: Chat = [
        (
            f"我有一{item.measure}{short_name(item)}",
            rng.choice((f"{item.kind}不错。", f"{clause(name, item.value(name), 0)}。")),
        )
    ]
    for _ in range(rng.choice((0, 1, 1, 2))):
        chat += rng.choice((small_talk, about_goods))(rng)
    ask = rng.randrange(3)
    if ask == 0:
        chat.append((f"我的{item.kind}是什么{name}", f"您的{item.kind}是{wish(name, item.value(name))}的。"))
    elif ask == 1:
        chat.append(("我有什么", f"您有一{item.measure}{short_name(item)}。"))
    else:
        voice = rng.randrange(3)
        chat.append(
            (f"用{VOICES[voice]}的口吻夸夸它", f"{'，'.join(clause(n, v, voice) for n, v in table_order(item))}。")
        )
    return chat


def look_back(rng: random.Random) -> Chat:
    """Some small talk, then a question about what was said before."""
    chat: Chat = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        chat += rng.choice((small_talk, about_goods))(rng)
    ask = rng.randrange(3)
    if ask == 0:
        chat.append((rng.choice(("我刚才问了什么", "我上一句说了什么")), f"您刚才说：{chat[-1][0]}"))
    elif ask == 1:
        chat.append((rng.choice(("再说一遍", "没听清")), chat[-1][1]))
    return chat


def draw_chat(rng: random.Random) -> Chat:
    """A chat of one or more rounds."""
    kinds: tuple[Callable[[random.Random], Chat], ...] = (
        small_talk,
        about_goods,
        remembered_wishes,
        owned_item,
        look_back,
    )
    return rng.choices(kinds, weights=(3, 4, 5, 2, 2))[0](rng)
