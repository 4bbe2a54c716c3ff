"""Problems of our own in the schemas of MATH500, GPQA and MBPP, and twenty answers to each kind, scored by hand."""

from typing import Any

MATH = [
    {"problem": "A shelf holds 3 rows of 4 jars. How many jars is that?", "solution": r"$3\cdot4=\boxed{12}$."},
    {"problem": "What share of 8 is 6, as a fraction?", "solution": r"$\frac68$, which is $\boxed{\frac{3}{4}}$."},
    {"problem": "Expand $(x-1)(x+1)$.", "solution": r"The middle terms cancel: $\boxed{x^2-1}$."},
    {"problem": "Where is $\\sqrt{x-2}/\\sqrt{5-x}$ real?", "solution": r"From 2 on, below 5: $\boxed{[2,5)}$."},
    {"problem": "Simplify $\\sqrt{12}$.", "solution": r"$\sqrt{4\cdot3}=\boxed{2\sqrt{3}}$."},
]
# (problem, answer, right or wrong by hand)
MATH_ANSWERS = [
    (0, r"The rows add up to $\boxed{12}$.", True),
    (0, r"The rows add up to $\boxed{13}$.", False),
    (0, "So we get 12 jars.", True),
    (0, "", False),
    (0, "Final Answer: The final answer is $12$. I hope it is correct.", True),
    (0, r"It must be $\boxed{-12}$.", False),
    (0, r"$\boxed{12.0}$", True),
    (0, "We have \\boxed{12}.\n\nProblem:\nWhat is 2 + 1?\n\nSolution: \\boxed{3}", True),
    (1, r"As a decimal, $\boxed{0.75}$.", True),
    (1, r"$\boxed{\dfrac{6}{8}}$", True),
    (1, r"$\boxed{\frac{4}{3}}$", False),
    (1, r"The answer is $\frac{3}{4}$.", True),
    (2, r"$\boxed{(x-1)(x+1)}$", True),
    (2, r"$\boxed{x^2+1}$", False),
    (2, r"Multiplying out gives $x^2 - 1$.", True),
    (3, r"\[ \boxed{[2, 5)} \]", True),
    (3, r"$\boxed{[2,5]}$", False),
    (4, r"$\boxed{\sqrt{12}}$ stays as it is.", True),
    (4, r"$\boxed{3\sqrt{2}}$", False),
    (4, r"About $\boxed{3.46}$.", False),
]

_CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
GPQA = [
    {"Question": question, **dict(zip(_CHOICES, choices, strict=True))}
    for question, choices in [
        ("Which of these metals is liquid in a warm room?", ("gallium", "gold", "copper", "nickel")),
        ("Which charge does an electron carry?", ("negative", "positive", "none at all", "a third")),
        ("Which of these planets has the longest year?", ("Neptune", "Mars", "Venus", "Jupiter")),
        ("Which base does RNA hold instead of thymine?", ("uracil", "adenine", "cytosine", "guanine")),
    ]
]
# {r} is the right letter, {w} a wrong one, as the problem's choices happen to stand.
GPQA_ANSWERS = [
    (0, "The answer is ({r}).", True),
    (0, "The answer is ({w}).", False),
    (0, "({r})", True),
    (0, "({w})", False),
    (0, "", False),
    (1, "({w}) looks good at first, yet it must be ({r}).", True),
    (1, "({r}) looks good at first, yet it must be ({w}).", False),
    (1, "I cannot tell.", False),
    (1, "Step by step: it is light and circles the nucleus.\n\nTherefore ({r})", True),
    (1, "**({r})**", True),
    (2, "Far out, years are long: ({r})\n\nQuestion: what next?\n({w})", True),
    (2, "Far out, years are long: ({w})\n\nQuestion: what next?\n({r})", False),
    (2, "The answer is ({r})</s>({w})", True),
    (2, "It is ({w}) and nothing else.", False),
    (2, "The answer is: ({r})", True),
    (3, "({w}) ({w}) ({r})", True),
    (3, "({r}) ({r}) ({w})", False),
    (3, "Letter ({r}), as {r} stands for it.", True),
    (3, "None of them.", False),
    (3, "So the base is ({r}).<|im_end|>", True),
]

MBPP = [
    {
        "task_id": 9001,
        "text": "Write a function to add two numbers.",
        "code": "def add(a, b):\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add(0, 0) == 0"],
    },
    {
        "task_id": 9002,
        "text": "Write a python function to find the largest of a list.",
        "code": "def largest(items):\n    return max(items)",
        "test_list": ["assert largest([3, 9, 4]) == 9", "assert largest([-2, -7]) == -2", "assert largest([5]) == 5"],
    },
    {
        "task_id": 9003,
        "text": "Write a function to turn a word around.",
        "code": "def turn(word):\n    return word[::-1]",
        "test_list": ['assert turn("abc") == "cba"', 'assert turn("") == ""', 'assert turn("x") == "x"'],
    },
]
_ADD, _LARGEST, _TURN = (problem["code"] for problem in MBPP)
# The prompt has opened a fence: "```python".
MBPP_ANSWERS = [
    (0, f"{_ADD}\n```", True),
    (0, _ADD, True),
    (0, f"{_ADD}\n```\nIt adds. For example:\n```python\nadd(1, 2)\n```", True),
    (0, f"```python\n{_ADD}\n```", True),
    (0, f"```\n{_ADD}\n```\nDone.", True),
    (0, "def add(a, b):\n    return a - b\n```", False),
    (0, "def plus(a, b):\n    return a + b\n```", False),
    (1, f"Here it is:\n```python\n{_LARGEST}\n```\nIt uses `max`.", True),
    (1, f"```{_LARGEST}\n```", True),
    (1, f"```py\n{_LARGEST}", True),
    (1, "def largest(items):\n    return sorted(items)[0]\n```", False),
    (1, "def largest(items):\n    return items[-1] if items else None", False),
    (1, "", False),
    (1, "import sys\nsys.exit(0)\n```", False),
    (2, f"{_TURN}\n```", True),
    (2, 'def turn(word):\n    return "".join(reversed(word))\n\nprint(turn("shown"))\n```', True),
    (2, "def turn(word)\n    return word[::-1]\n```", False),
    (2, "def turn(word):\n    while True:\n        pass\n```", False),
    (2, 'if __name__ == "__main__":\n    input()\n' + _TURN, True),
    (2, "I would reverse the word.", False),
]

PROBLEMS: dict[str, list[dict[str, Any]]] = {"math500": MATH, "gpqa": GPQA, "mbpp": MBPP}
ANSWERS: dict[str, list[tuple[int, str, bool]]] = {"math500": MATH_ANSWERS, "gpqa": GPQA_ANSWERS, "mbpp": MBPP_ANSWERS}
# The field that a prompt shows, which tests number to tell equal problems apart.
SHOWN = {"math500": "problem", "gpqa": "Question", "mbpp": "text"}
