"""The grammar of one small world: the clothes of a small shop, and three voices to talk about them.

An item is a kind of garment with two to four attributes. For every value of an attribute there are three clauses, one
for each voice. Everything else (tuning rows, pretraining texts) is put together from these tables with a seeded
`random.Random`, so the same seed writes the same bytes on every machine.

Which texts may use an item is decided by its attribute combination alone: `bucket` hashes the combination, and the
combinations of the test and dev buckets stand in no training row and in no pretraining text.
"""

import random
import zlib
from dataclasses import dataclass
from enum import Enum

KINDS: dict[str, str] = {"上衣": "件", "外套": "件", "毛衣": "件", "衬衫": "件", "裙子": "条", "裤子": "条"}
"""Garment -> measure word."""

VOICES = ("朴素", "活泼", "雅致")

CLAUSES: dict[str, dict[str, tuple[str, str, str]]] = {
    "颜色": {
        "红色": ("红色醒目大方", "一抹红色让人眼前一亮", "红色衬得肤色明净"),
        "蓝色": ("蓝色看着清爽", "蓝色像晴天一样明快", "蓝色沉静如湖水"),
        "白色": ("白色干净百搭", "白色清清爽爽最讨喜", "白色素净如初雪"),
        "黑色": ("黑色耐看显瘦", "黑色一穿就很酷", "黑色沉稳而内敛"),
        "绿色": ("绿色自然舒服", "绿色满是春天的气息", "绿色清润如新叶"),
        "黄色": ("黄色明亮温暖", "黄色元气满满", "黄色柔和似晨光"),
        "灰色": ("灰色低调好搭", "灰色怎么搭都不出错", "灰色淡雅有余味"),
        "紫色": ("紫色特别不俗", "紫色带点小神秘", "紫色含蓄而高贵"),
        "粉色": ("粉色温柔减龄", "粉色少女心满分", "粉色轻柔如花瓣"),
        "棕色": ("棕色沉稳耐脏", "棕色像热可可一样暖", "棕色温厚有质感"),
    },
    "材质": {
        "纯棉": ("纯棉料子柔软吸汗", "纯棉贴着皮肤软乎乎", "纯棉触感温润亲肤"),
        "亚麻": ("亚麻面料透气凉快", "亚麻穿着风都钻得进来", "亚麻肌理朴拙自然"),
        "羊毛": ("羊毛保暖不扎人", "羊毛暖得像抱着小羊", "羊毛绵密细腻"),
        "真丝": ("真丝顺滑有光泽", "真丝滑溜溜的真舒服", "真丝垂坠似流水"),
        "牛仔": ("牛仔布结实耐磨", "牛仔布随便穿都不怕", "牛仔布硬朗有骨感"),
        "雪纺": ("雪纺轻薄不闷热", "雪纺走起来飘飘的", "雪纺轻盈若云烟"),
        "针织": ("针织弹力好不变形", "针织软软糯糯的", "针织纹理细致柔和"),
        "皮革": ("皮革挡风又挺括", "皮革一上身就有型", "皮革光泽含而不露"),
    },
    "版型": {
        "宽松": ("宽松的版型不挑身材", "宽宽松松怎么动都自在", "宽松轮廓从容洒脱"),
        "修身": ("修身的剪裁显腰身", "修身一穿立刻瘦一圈", "修身线条流畅利落"),
        "直筒": ("直筒的版型修饰线条", "直直的筒形又帅又显高", "直筒轮廓干净挺拔"),
        "短款": ("短款的设计拉高比例", "短短的一截特别显腿长", "短款比例轻巧得宜"),
        "长款": ("长款的设计遮肉保暖", "长长的下摆走路带风", "长款身姿修长飘逸"),
    },
    "风格": {
        "简约": ("简约的样式四季都能穿", "简简单单就很好看", "简约之中见用心"),
        "复古": ("复古的样式很有年代感", "复古味道像老电影", "复古气韵历久弥新"),
        "休闲": ("休闲的样式日常都合适", "休闲一整天都轻松", "休闲意态悠然自得"),
        "甜美": ("甜美的样式讨人喜欢", "甜美得像一颗糖", "甜美气息恰到好处"),
        "通勤": ("通勤的样式上班也得体", "通勤路上也能美美的", "通勤装束端庄知性"),
        "运动": ("运动的样式跑跳都方便", "运动起来活力全开", "运动气质健朗明快"),
        "文艺": ("文艺的样式安静耐看", "文艺范儿一下就有了", "文艺情调娓娓道来"),
    },
    "图案": {
        "条纹": ("条纹图案规整显瘦", "条纹一道一道真精神", "条纹疏密有致"),
        "格子": ("格子图案经典不过时", "格子方方正正好俏皮", "格子错落有书卷气"),
        "碎花": ("碎花图案清新好看", "碎花像把花园穿在身上", "碎花点点暗香浮动"),
        "波点": ("波点图案减龄可爱", "圆圆的波点蹦蹦跳跳", "波点灵动而不喧闹"),
        "刺绣": ("刺绣图案做工精细", "小小的刺绣越看越喜欢", "刺绣一针一线见匠心"),
        "字母": ("字母图案简单有趣", "字母印上去潮味十足", "字母点缀简洁摩登"),
    },
    "领型": {
        "圆领": ("圆领贴合颈部不勒", "圆领圆圆的很乖巧", "圆领弧度温婉柔和"),
        "翻领": ("翻领显得人精神", "翻领一翻帅气加倍", "翻领挺括有风度"),
        "立领": ("立领护住脖子挡风", "立领一立气场就来", "立领端正显气质"),
        "高领": ("高领把脖子裹得严实", "高领像自带小围巾", "高领优雅修饰颈线"),
        "方领": ("方领露出锁骨显脸小", "方领一穿小脸就有了", "方领端丽别致"),
    },
    "腰型": {
        "高腰": ("高腰的设计显腿长", "高腰一提腿长两米", "高腰拉出纤长比例"),
        "松紧腰": ("松紧腰穿脱很方便", "松紧腰吃多了也不怕", "松紧腰收放自如"),
        "系带": ("系带腰头可以调节", "系上带子打个蝴蝶结", "系带轻束别有韵致"),
    },
    "季节": {
        "春季": ("春季穿着刚刚好", "春天穿它去踏青吧", "春日穿来和煦宜人"),
        "夏季": ("夏季穿着不闷汗", "夏天穿它吃冰最开心", "夏日穿来清凉自在"),
        "秋季": ("秋季穿着不冷不热", "秋天穿它去踩落叶", "秋日穿来疏朗从容"),
        "冬季": ("冬季穿着暖和挡寒", "冬天穿它去堆雪人", "冬日穿来温暖安然"),
    },
    "细节": {
        "口袋": ("两侧口袋能放手机", "大口袋装得下好多零食", "口袋隐于侧缝十分精巧"),
        "拉链": ("拉链顺滑不卡布", "拉链一拉说走就走", "拉链细巧利落分明"),
        "纽扣": ("纽扣缝得牢固", "一排纽扣像小豆子", "纽扣温润点睛"),
        "流苏": ("流苏装饰增加层次", "流苏一走一晃真好玩", "流苏轻摇生姿"),
        "褶皱": ("褶皱做法遮住小肚子", "褶皱一层一层像蛋糕", "褶皱层叠起伏有致"),
    },
}
"""Attribute -> value -> its clause in each of the three voices."""

TOPS_ONLY = "领型"
BOTTOMS_ONLY = "腰型"

CLOSINGS: dict[str, tuple[str, str, str]] = {
    "上衣": ("搭什么都合适", "随手一搭就能出门", "静候有缘人"),
    "外套": ("出门带上它就行", "披上就是好风景", "岁月亦为之从容"),
    "毛衣": ("天凉了正好穿", "抱在怀里舍不得放", "温柔尽在其中"),
    "衬衫": ("上班见客都体面", "坐着站着都好看", "风度不言自明"),
    "裙子": ("出门约会都能穿", "转个圈就是主角", "行止之间皆是诗意"),
    "裤子": ("走路干活都不累", "迈开步子更轻松", "举步之间自有分寸"),
}
"""Garment -> closing clause in each of the three voices."""


class Bucket(Enum):
    """Where an attribute combination may be used."""

    OPEN = "training rows and pretraining texts"
    DEV = "dev rows only"
    TEST = "test rows only"


@dataclass(frozen=True)
class Item:
    """A garment with its attributes, in the order in which they are told."""

    kind: str
    attributes: tuple[tuple[str, str], ...]

    @property
    def measure(self) -> str:
        """The measure word of the garment."""
        return KINDS[self.kind]

    @property
    def names(self) -> list[str]:
        """The attribute names in the told order, the kind not among them."""
        return [name for name, _ in self.attributes]

    def value(self, name: str) -> str:
        """The value of attribute `name`; KeyError if the item has none."""
        return dict(self.attributes)[name]


def attribute_names(kind: str) -> list[str]:
    """The attributes that a garment of this kind can have."""
    other = TOPS_ONLY if KINDS[kind] == "条" else BOTTOMS_ONLY
    return [name for name in CLAUSES if name != other]


def combination(item: Item) -> str:
    """The attribute combination as one string that does not depend on the told order."""
    return item.kind + "".join(f"/{name}:{value}" for name, value in sorted(item.attributes))


def bucket(item: Item) -> Bucket:
    """The bucket of an attribute combination: about 1 in 16 each for dev and test."""
    number = zlib.crc32(combination(item).encode("utf-8")) % 16
    return {0: Bucket.TEST, 1: Bucket.DEV}.get(number, Bucket.OPEN)


def draw_item(rng: random.Random, where: Bucket = Bucket.OPEN, sizes: tuple[int, ...] = (2, 3, 3, 4, 4)) -> Item:
    """A random item of one bucket, with as many attributes as a draw from `sizes` says."""
    while True:
        kind = rng.choice(list(KINDS))
        names = rng.sample(attribute_names(kind), rng.choice(sizes))
        item = Item(kind, tuple((name, rng.choice(list(CLAUSES[name]))) for name in names))
        if bucket(item) is where:
            return item


def table_order(item: Item) -> list[tuple[str, str]]:
    """The attributes in the order of the table above, whatever order they were told in."""
    return [(name, item.value(name)) for name in CLAUSES if name in item.names]


def clause(name: str, value: str, voice: int) -> str:
    """The clause on one value in voice 0, 1 or 2."""
    return CLAUSES[name][value][voice]


def wish(name: str, value: str) -> str:
    """The value as a customer names it before "的": 红色, 带口袋, 春季穿."""
    return {"细节": "带{}", "季节": "{}穿"}.get(name, "{}").format(value)


def short_name(item: Item) -> str:
    """The item in a few words, such as 红色、带口袋的裙子; always in the order of the table."""
    return f"{'、'.join(wish(name, value) for name, value in table_order(item))}的{item.kind}"
