"""The texts of the starter model: a seeded generator of a little world of people, towns, things and food.

Two kinds of text come from here, and nothing is taken from elsewhere: ``base_documents`` are plain stories whose facts are
told twice in different words, for training the base model; ``rewrites`` are sentences with an instruction (ask, deny, say
it in other words or of somebody else) and the answer, for fine-tuning. How both become files, a tokenizer and a checkpoint
is in ``make_starter.py``.

A held-out example is about a pair (person, town; person, thing; person, food) that ``reserved`` keeps out of all training
examples, so that no held-out answer can be known by heart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


def _words(text: str) -> list[str]:
    return text.split()


PEOPLE = _words("""Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karin Leo Mia Nora Oscar Paula Quinn Rosa Simon Tom
Ulla Viktor Wanda Yara Zoe Adam Bella Carl Dora Erik""")
TOWNS = _words("""Oslo Bern Rome Paris Lima Cairo Delhi Kyoto Dublin Vienna Prague Lisbon Madrid Athens Warsaw Zurich Geneva
Milan Naples Porto Turin Lyon Ghent Bergen""")
COLOURS = _words("red blue green black white brown pink grey purple yellow")
THINGS = _words("""kite drum lamp book ball boat chair clock coat cup flute hat key ladder mirror pen piano ring rope shoe spoon
table tent violin""")
FOODS = _words("soup bread rice cheese honey fish cake pasta salad beans plums grapes pears nuts corn figs")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBERS = _words("one two three four five six seven eight nine ten eleven twelve")

TELLINGS = {
    "home": ("{who} lives in {what}.", "{what} is the home of {who}."),
    "thing": ("{who} has a {what}.", "The {what} belongs to {who}."),
    "food": ("{who} likes to eat {what}.", "The favourite food of {who} is {what}."),
}
"""Kind of fact -> the ways to tell it; the first is how answers tell it."""

QUESTIONS = {
    "home": "Where does {who} live?",
    "thing": "What does {who} have?",
    "food": "What does {who} like to eat?",
}
DENIALS = {
    "home": "{who} does not live in {what}.",
    "thing": "{who} does not have a {what}.",
    "food": "{who} does not like to eat {what}.",
}


@dataclass(frozen=True)
class Fact:
    """That this person has this home, thing or food."""

    kind: str
    who: str
    what: str

    def tell(self, telling: int) -> str:
        """The fact as a sentence, in one of its tellings."""
        return TELLINGS[self.kind][telling].format(who=self.who, what=self.what)

    def ask(self) -> str:
        """The question that the fact answers."""
        return QUESTIONS[self.kind].format(who=self.who)

    def deny(self) -> str:
        """That the fact is not so."""
        return DENIALS[self.kind].format(who=self.who, what=self.what)


def reserved(fact: Fact) -> bool:
    """Whether the fact's pair is kept for held-out questions: one pair in eight."""
    values = {"home": TOWNS, "thing": THINGS, "food": FOODS}[fact.kind]
    return (3 * PEOPLE.index(fact.who) + 5 * values.index(fact.what.split()[-1])) % 8 == 0


def story(rng: random.Random, held_out: bool | None = None) -> list[Fact]:
    """Facts about two or three people, in the order of telling; no town, thing or food stands twice.

    Args:
        rng: Source of randomness.
        held_out: True = only reserved facts, False = none of them, None = any.
    """
    people = rng.sample(PEOPLE, rng.randint(2, 3))
    facts: list[Fact] = []
    for who in people:
        for kind in rng.sample(sorted(TELLINGS), rng.randint(1, 2)):
            facts.append(_fact(rng, kind, who, held_out, {fact.what.split()[-1] for fact in facts}))
    rng.shuffle(facts)
    return facts


def base_documents(seed: int, count: int) -> Iterator[str]:
    """Plain texts for the base model: mostly stories told twice, some days and sums. There are no questions in them."""
    rng = random.Random(seed)
    for _ in range(count):
        draw = rng.random()
        yield _days(rng) if draw < 0.03 else _sums(rng) if draw < 0.06 else _told_again(rng)


def rewrites(seed: int, count: int, held_out: bool) -> list[dict[str, str]]:
    """Different examples ``{"src": instruction and sentence, "tgt": answer}``."""
    rng = random.Random(seed)
    examples: dict[str, str] = {}
    while len(examples) < count:
        fact = _fact(rng, rng.choice(sorted(TELLINGS)), rng.choice(PEOPLE), held_out, set())
        telling = rng.randrange(2)
        instruction, answer = rng.choice((_asked, _denied, _reworded, _of_another))(rng, fact, telling, held_out)
        examples.setdefault(f"{instruction}: {fact.tell(telling)}", answer)
    return [{"src": src, "tgt": tgt} for src, tgt in examples.items()]


def _asked(rng: random.Random, fact: Fact, telling: int, held_out: bool) -> tuple[str, str]:
    return "Ask about this", fact.ask()


def _denied(rng: random.Random, fact: Fact, telling: int, held_out: bool) -> tuple[str, str]:
    return "Deny this", fact.deny()


def _reworded(rng: random.Random, fact: Fact, telling: int, held_out: bool) -> tuple[str, str]:
    return "Say this in other words", fact.tell(1 - telling)


def _of_another(rng: random.Random, fact: Fact, telling: int, held_out: bool) -> tuple[str, str]:
    others = (Fact(fact.kind, who, fact.what) for who in PEOPLE if who != fact.who)
    other = rng.choice([one for one in others if reserved(one) == held_out])
    return f"Say this of {other.who}", other.tell(telling)


def _fact(rng: random.Random, kind: str, who: str, held_out: bool | None, taken: set[str]) -> Fact:
    while True:
        value = rng.choice({"home": TOWNS, "thing": THINGS, "food": FOODS}[kind])
        fact = Fact(kind, who, f"{rng.choice(COLOURS)} {value}" if kind == "thing" else value)
        if value not in taken and held_out in (None, reserved(fact)):
            return fact


def _told_again(rng: random.Random) -> str:
    facts = story(rng)
    first = [fact.tell(rng.randrange(2)) for fact in facts]
    if rng.random() < 0.3:
        return " ".join(first * 3)
    again = [fact.tell(rng.randrange(2)) for _ in range(2) for fact in rng.sample(facts, len(facts))]
    return " ".join(first + again)


def _days(rng: random.Random) -> str:
    start, length = rng.randrange(7), rng.randint(2, 5)
    names = [DAYS[(start + i) % 7] for i in range(length + 1)]
    return " ".join(f"After {day} comes {following}." for day, following in pairwise(names))


def _sums(rng: random.Random) -> str:
    pairs = [(rng.randint(1, 6), rng.randint(1, 6)) for _ in range(rng.randint(2, 4))]
    return " ".join(f"{NUMBERS[a - 1].capitalize()} and {NUMBERS[b - 1]} make {NUMBERS[a + b - 1]}." for a, b in pairs)
