"""The fact set: its gold accepts what is right and nothing else, row by row."""

from collections import Counter

import pytest

from latent_rewards.data.facts import facts, is_right

ROWS = facts()


def by(question):
    return next(row for row in ROWS if row["question"] == question)


def test_the_set():
    assert len(ROWS) >= 300 and len({r["question"] for r in ROWS}) == len({r["id"] for r in ROWS}) == len(ROWS)
    kinds = Counter(r["kind"] for r in ROWS)
    held = Counter(r["kind"] for r in facts("held_out"))
    assert all(held[kind] == n // 4 for kind, n in kinds.items())
    assert len(facts("train")) + len(facts("held_out")) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[r["id"] for r in ROWS])
def test_gold(row):
    assert is_right(row["right"], row) and is_right(row["answer"], row) and is_right(f"{row['answer']}.", row)
    assert {kind: is_right(text, row) for kind, text in row["wrong"].items()} == dict.fromkeys(row["wrong"], False)
    for other in ROWS:
        if other["kind"] == row["kind"] == "sum" and other["answer"] != row["answer"]:
            assert not is_right(other["right"], row)


@pytest.mark.parametrize(
    ("question", "text", "right"),
    [
        ("How many metres are there in a kilometre?", "There are 1,000 metres in a kilometre.", True),
        ("How many metres are there in a kilometre?", "One thousand.", True),
        ("How many metres are there in a kilometre?", "Either 100 or 1000.", False),
        ("How many metres are there in a kilometre?", "There are -1000.", False),
        ("What is the chemical symbol for carbon?", "It is C.", True),
        ("What is the chemical symbol for carbon?", "It is c.", False),
        ("What is the chemical symbol for carbon?", "Carbon", False),
        ("What is the chemical symbol for carbon?", "C, N, O or H", False),
        ("What does the Python expression 'abc'[0] give?", "It gives 'a'.", True),
        ("What does the Python expression 'abc'[0] give?", "Python is a language", False),
        ("What is the capital of Ukraine?", "kiev", True),
        ("What is the capital of Peru?", "Limassol", False),
        ("What does the Python expression 8 / 2 give?", "The expression 8 / 2 gives 4.0.", True),
        ("What does the Python expression 8 / 2 give?", "The expression 8 / 2 gives 8.", False),
    ],
)
def test_spellings(question, text, right):
    assert is_right(text, by(question)) is right
