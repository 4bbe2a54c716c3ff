"""Grade-school word problems, each of which may be answered in several phrasings.

Every problem has one number as its answer but many sentences that say it; a sampler that fills all positions
independently mixes the sentences, and the grading here notices: only a whole phrasing with the right number counts.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterator

import numpy as np

NAMES = ("Tom", "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace")
ITEMS = ("apples", "books", "cards", "coins", "eggs", "pencils", "shells", "stamps")
BOXES = ("bags", "baskets", "boxes", "jars")

# Question templates by operation: {x} is the person, {y} another one, {i} the items, {k} boxes, {a} {b} {c} numbers.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "add": (
        "{x} has {a} {i} and buys {b} more. How many {i} does {x} have?",
        "{x} had {a} {i}. Then {y} gave {x} another {b}. How many {i} does {x} have?",
        "There were {a} {i} on the table and {x} found {b} more. How many {i} does {x} have?",
    ),
    "subtract": (
        "{x} has {a} {i} and gives {b} to {y}. How many {i} does {x} have?",
        "{x} had {a} {i} but lost {b}. How many {i} does {x} have?",
        "{y} took {b} of the {a} {i} of {x}. How many {i} does {x} have?",
    ),
    "multiply": (
        "{x} has {a} {k} with {b} {i} in each. How many {i} does {x} have?",
        "{x} filled {a} {k} and put {b} {i} in each. How many {i} does {x} have?",
    ),
    "add_subtract": (
        "{x} has {a} {i}, buys {b} more and gives {c} to {y}. How many {i} does {x} have?",
        "{x} had {a} {i}, found {b} more and then lost {c}. How many {i} does {x} have?",
    ),
}
OPERATIONS = tuple(QUESTIONS)

# Ways to say the same answer: {s} is the calculation, {r} the result. Lengths and word orders differ on purpose.
PHRASINGS = (
    "Since {s}, {x} has {r} {i}. #### {r}",
    "With {s} we see that {x} now has {r} {i}. #### {r}",
    "From {s} it follows that the number of {i} is {r}. #### {r}",
    "Because {s}, there are {r} {i} in all. #### {r}",
    "Here {s}, which makes {r} {i} for {x}. #### {r}",
)

LARGEST_NUMBER = 100
_HELD_OUT_SHARE = 10  # one key in ten is never trained on


@dataclasses.dataclass(frozen=True)
class Problem:
    """One word problem.

    Attributes:
      operation: a key of `QUESTIONS`.
      wording: which question template of that operation.
      person, other: two different names.
      items, boxes: plural nouns; `boxes` is used by "multiply" only.
      numbers: two numbers, three for "add_subtract".
    """

    operation: str
    wording: int
    person: str
    other: str
    items: str
    boxes: str
    numbers: tuple[int, ...]

    @property
    def question(self) -> str:
        """The text that is put to the model."""
        numbers = dict(zip("abc", self.numbers, strict=False))
        template = QUESTIONS[self.operation][self.wording]
        return template.format(x=self.person, y=self.other, i=self.items, k=self.boxes, **numbers)

    @property
    def steps(self) -> tuple[tuple[int, str, int, int], ...]:
        """The calculation as (left, sign, right, result) steps; the last result is the answer."""
        a, b = self.numbers[:2]
        if self.operation == "add":
            return ((a, "+", b, a + b),)
        if self.operation == "subtract":
            return ((a, "-", b, a - b),)
        if self.operation == "multiply":
            return ((a, "*", b, a * b),)
        c = self.numbers[2]
        return ((a, "+", b, a + b), (a + b, "-", c, a + b - c))

    @property
    def answer(self) -> int:
        """The number that is asked for."""
        return self.steps[-1][-1]

    def solution(self, phrasing: int) -> str:
        """The answer in one of `PHRASINGS`."""
        calculation = " and ".join(f"{left} {sign} {right} = {result}" for left, sign, right, result in self.steps)
        return PHRASINGS[phrasing].format(x=self.person, i=self.items, s=calculation, r=self.answer)

    @property
    def solutions(self) -> tuple[str, ...]:
        """Every coherent answer, in the order of `PHRASINGS`."""
        return tuple(self.solution(phrasing) for phrasing in range(len(PHRASINGS)))

    @property
    def held_out(self) -> bool:
        """Whether the problem is of the test split: a hash of its question decides, so the splits are disjoint."""
        return zlib.crc32(self.question.encode()) % _HELD_OUT_SHARE == 0


def sample_problem(rng: np.random.Generator) -> Problem:
    """One problem from the generator's distribution, of either split."""
    operation = OPERATIONS[rng.integers(len(OPERATIONS))]
    person, other = rng.choice(len(NAMES), size=2, replace=False)
    if operation == "add":
        numbers = rng.integers(2, 12, size=2)
    elif operation == "subtract":
        first = rng.integers(4, 16)
        numbers = (first, rng.integers(2, first - 1))
    elif operation == "multiply":
        numbers = rng.integers(2, 10, size=2)
    else:
        first, second = rng.integers(2, 7, size=2)
        numbers = (first, second, rng.integers(2, first + second - 1))
    return Problem(
        operation=operation,
        wording=int(rng.integers(len(QUESTIONS[operation]))),
        person=NAMES[person],
        other=NAMES[other],
        items=ITEMS[rng.integers(len(ITEMS))],
        boxes=BOXES[rng.integers(len(BOXES))],
        numbers=tuple(int(n) for n in numbers),
    )


def sample_problems(seed: int, held_out: bool) -> Iterator[Problem]:
    """Endless problems of one split; held-out questions do not repeat."""
    rng = np.random.default_rng((seed, int(held_out)))
    seen: set[str] = set()
    while True:
        problem = sample_problem(rng)
        if problem.held_out != held_out or (held_out and problem.question in seen):
            continue
        if held_out:
            seen.add(problem.question)
        yield problem


@dataclasses.dataclass(frozen=True)
class Grade:
    """What is right about one answer.

    Attributes:
      solved: the text is one whole phrasing with the right numbers throughout.
      answer_right: the number after "####" is right, whatever stands before it.
      coherent: the text is a whole phrasing with the right names and calculation signs, numbers aside.
    """

    solved: bool
    answer_right: bool
    coherent: bool


def grade(problem: Problem, text: str) -> Grade:
    """Grade a decoded answer (special tokens removed; surrounding blanks do not count)."""
    text = text.strip()
    stated = re.search(r"#### (-?\d+)", text)
    skeletons = {re.sub(r"\d+", "#", solution) for solution in problem.solutions}
    return Grade(
        solved=text in problem.solutions,
        answer_right=stated is not None and int(stated.group(1)) == problem.answer,
        coherent=re.sub(r"\d+", "#", text) in skeletons,
    )
