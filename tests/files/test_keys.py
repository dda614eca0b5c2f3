import pytest

from latent_rewards.best_of_n.groups import Group, _group_key
from latent_rewards.evaluation.benchmarks.rows import Item
from latent_rewards.files.keys import prompt_key
from latent_rewards.rewards.base import group_statistics
from latent_rewards.serving.reads import group

SAID = [{"role": "user", "content": "q"}]
SAME = [("q", "q"), (SAID, [{"content": "q", "role": "user"}]), ("\ud800", "\ud800")]
OTHER = [("q", "Q"), ("q", " q"), ("q", SAID), (SAID, str(SAID)), (SAID, '[{"content": "q", "role": "user"}]')]


@pytest.mark.parametrize(("a", "b", "same"), [*((*p, True) for p in SAME), *((*p, False) for p in OTHER)])
def test_the_same_prompt_is_the_same_everywhere(a, b, same):
    """Training groups, evaluation groups, best-of-n and the server's batches agree; form and spelling tell apart."""
    assert (prompt_key(a) == prompt_key(b)) is same
    assert (Item("", a, ("",), (1.0,)).group == Item("", b, ("",), (1.0,)).group) is same
    assert (_group_key(Group(0, [], a, [""])) == _group_key(Group(1, [], b, [""]))) is same
    assert (group([{"prompt": a}]) == group([{"prompt": b}])) is same
    assert (group_statistics([a, b], [0.0, 1.0])["spread"] == 0.5) is same
