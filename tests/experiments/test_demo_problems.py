"""The demo's generator: every phrasing is accepted, every mixture of phrasings is not, and the splits do not meet."""

import itertools

import numpy as np
import pytest

from experiments.demo_task import problems


@pytest.fixture(scope="module")
def some_problems() -> list[problems.Problem]:
    """200 problems of the training split and 200 held-out ones."""
    return [
        problem
        for held_out in (False, True)
        for problem in itertools.islice(problems.sample_problems(3, held_out), 200)
    ]


def test_all_phrasings_are_accepted(some_problems):
    for problem in some_problems:
        assert len(set(problem.solutions)) == len(problems.PHRASINGS)
        for solution in problem.solutions:
            assert problems.grade(problem, f" {solution}\n") == problems.Grade(True, True, True)


def test_mixtures_of_two_phrasings_are_rejected(some_problems):
    for problem in some_problems[::20]:
        for left, right in itertools.permutations(problem.solutions, 2):
            left_words, right_words = left.split(), right.split()
            for cut in range(1, min(len(left_words), len(right_words))):
                mixed = " ".join(left_words[:cut] + right_words[cut:])
                expected = mixed in problem.solutions
                assert problems.grade(problem, mixed).solved == expected
                assert problems.grade(problem, mixed).coherent == expected


def test_wrong_numbers_are_told_from_incoherence(some_problems):
    for problem in some_problems[:20]:
        wrong = problem.solution(0).replace(str(problem.answer), str(problem.answer + 50))
        assert problems.grade(problem, wrong) == problems.Grade(solved=False, answer_right=False, coherent=True)
        right_number = f"The apples has. #### {problem.answer}"
        assert problems.grade(problem, right_number) == problems.Grade(solved=False, answer_right=True, coherent=False)
        assert problems.grade(problem, "") == problems.Grade(False, False, False)


def test_calculations_hold(some_problems):
    for problem in some_problems:
        for left, sign, right, result in problem.steps:
            assert {"+": left + right, "-": left - right, "*": left * right}[sign] == result
        assert 2 <= problem.answer <= problems.LARGEST_NUMBER
        assert problem.person != problem.other
        assert all(str(number) in problem.question for number in problem.numbers)


def test_all_operations_and_wordings_occur(some_problems):
    seen = {(problem.operation, problem.wording) for problem in some_problems}
    assert seen == {(name, index) for name, texts in problems.QUESTIONS.items() for index in range(len(texts))}


def test_splits_are_disjoint_and_reproducible():
    train = {p.question for p in itertools.islice(problems.sample_problems(0, False), 3000)}
    held_out = [p.question for p in itertools.islice(problems.sample_problems(0, True), 500)]
    assert len(set(held_out)) == len(held_out)
    assert not train & set(held_out)
    assert held_out == [p.question for p in itertools.islice(problems.sample_problems(0, True), 500)]
    assert held_out != [p.question for p in itertools.islice(problems.sample_problems(1, True), 500)]


def test_held_out_share_is_a_tenth():
    rng = np.random.default_rng(0)
    share = np.mean([problems.sample_problem(rng).held_out for _ in range(4000)])
    assert abs(share - 0.1) < 4 * np.sqrt(0.09 / 4000)
