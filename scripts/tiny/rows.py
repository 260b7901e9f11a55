"""Writes the rows to tune on: data/adgen-tiny (ADGEN form) and data/dialogue-tiny (dialogues with history).

An ADGEN row gives the attributes as `类型#裙子*颜色#红色`, in any order, and wants one advertisement in the shop-window
manner: a fixed order of attributes and one voice for each of them, whatever the row's order is. A dialogue row is an
order that grows over the rounds; every reply repeats the order so far, so the last reply needs the history.

Run: python -m scripts.tiny.rows [folder]   (default: data)
"""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

from scripts.tiny.world import CLAUSES, CLOSINGS, Bucket, Item, clause, combination, draw_item, short_name, wish

SEED = 20230406
ADGEN_ROWS = {"train": (3000, Bucket.OPEN), "dev": (200, Bucket.DEV), "test": (200, Bucket.TEST)}
DIALOGUE_ROWS = {"train": (1200, Bucket.OPEN), "dev": (80, Bucket.DEV)}

WINDOW_ORDER = ("季节", "材质", "颜色", "图案", "领型", "腰型", "版型", "细节", "风格")
"""The order in which a shop-window text takes up the attributes."""

WINDOW_VOICE = {"颜色": 1, "材质": 0, "版型": 2, "风格": 1, "图案": 2, "领型": 0, "腰型": 0, "季节": 1, "细节": 2}
"""The voice in which a shop-window text speaks of each attribute."""

PARAPHRASE = 0.08
"""Share of the clauses that are told in another voice."""


def window_text(item: Item, rng: random.Random) -> str:
    """The advertisement of an item in the shop-window manner, about 25 to 60 characters."""
    told = sorted(item.attributes, key=lambda pair: WINDOW_ORDER.index(pair[0]))
    clauses = []
    for name, value in told:
        voice = rng.randrange(3) if rng.random() < PARAPHRASE else WINDOW_VOICE[name]
        clauses.append(clause(name, value, voice))
    return f"新到的{item.kind}，{'，'.join(clauses)}，{CLOSINGS[item.kind][1]}。"


def adgen_row(item: Item, rng: random.Random) -> dict[str, str]:
    """One row in ADGEN form: `content` with # and *, `summary` with the advertisement."""
    content = "*".join(f"{name}#{value}" for name, value in (("类型", item.kind), *item.attributes))
    return {"content": content, "summary": window_text(item, rng)}


def adgen_rows(split: str) -> list[dict[str, str]]:
    """All rows of one split; no two rows of a split have the same attribute combination."""
    count, where = ADGEN_ROWS[split]
    rng = random.Random(f"{SEED}/adgen/{split}")
    seen: set[str] = set()
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        item = draw_item(rng, where)
        if combination(item) not in seen:
            seen.add(combination(item))
            rows.append(adgen_row(item, rng))
    return rows


def _swap(item: Item, name: str, value: str) -> Item:
    return Item(item.kind, tuple((n, value if n == name else v) for n, v in item.attributes))


def _opening_rounds(item: Item, rng: random.Random) -> list[list[str]]:
    """One round for each attribute of the item; every reply repeats the order so far."""
    rounds = []
    for count, (name, value) in enumerate(item.attributes, start=1):
        so_far = Item(item.kind, item.attributes[:count])
        ways: tuple[str, ...] = (f"{name}要{value}", f"还要{wish(name, value)}的", f"再加一样，{wish(name, value)}")
        if count == 1:
            one = f"一{item.measure}"
            ways = (f"想买{one}{wish(name, value)}的{item.kind}", f"来{one}{item.kind}，{name}要{value}")
        rounds.append([rng.choice(ways), f"记下啦：{short_name(so_far)}。"])
    return rounds


def _last_round(item: Item, ending: str, rng: random.Random) -> list[str]:
    name = rng.choice(item.names)
    if ending == "ask":
        return [rng.choice((f"刚才{name}说的是哪种", f"我要的{name}是什么来着")), f"查到啦：{item.value(name)}。"]
    return [rng.choice(("就这些", "没有别的了")), f"下单啦：一{item.measure}{short_name(item)}。"]


def dialogue_row(rng: random.Random, where: Bucket) -> dict[str, object]:
    """An order that grows over 0 to 3 rounds of history; what is ordered in the end is an item of the bucket `where`.

    The prompt adds a wish, changes one, asks for one or closes the order: without the history none of them has a reply.
    """
    history_rounds = rng.choice((0, 1, 1, 2, 2, 3, 3))
    ending = rng.choice(("add", "change", "ask", "done")) if history_rounds else "add"
    item = draw_item(rng, where, sizes=(history_rounds + (ending == "add"),))
    if ending == "add":
        rounds = _opening_rounds(item, rng)
    elif ending == "change":
        name = rng.choice(item.names)
        before = rng.choice([value for value in CLAUSES[name] if value != item.value(name)])
        rounds = _opening_rounds(_swap(item, name, before), rng)
        query = rng.choice((f"{name}换成{item.value(name)}", f"{name}还是{item.value(name)}吧"))
        rounds.append([query, f"改好啦：{short_name(item)}。"])
    else:
        rounds = [*_opening_rounds(item, rng), _last_round(item, ending, rng)]
    return {"prompt": rounds[-1][0], "response": rounds[-1][1], "history": rounds[:-1]}


def dialogue_rows(split: str) -> list[dict[str, object]]:
    """All dialogue rows of one split, without doubles."""
    count, where = DIALOGUE_ROWS[split]
    rng = random.Random(f"{SEED}/dialogue/{split}")
    rows: dict[str, dict[str, object]] = {}
    while len(rows) < count:
        row = dialogue_row(rng, where)
        rows.setdefault(json.dumps([row["history"], row["prompt"]], ensure_ascii=False), row)
    return list(rows.values())


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Writes one JSON object a line, UTF-8, without escapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_all(folder: Path) -> None:
    """Writes every split of both data sets below `folder`."""
    for split in ADGEN_ROWS:
        write_rows(folder / "adgen-tiny" / f"{split}.json", adgen_rows(split))
    for split in DIALOGUE_ROWS:
        write_rows(folder / "dialogue-tiny" / f"{split}.json", dialogue_rows(split))


if __name__ == "__main__":
    write_all(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
