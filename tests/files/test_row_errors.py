import pickle

import pytest
from contracts import FakeJudge

from latent_rewards import ProbabilityWeightedReward
from latent_rewards.files.sources import InputError, RowError
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.rewards.scorer import Scorer


def test_a_row_is_told_by_number_not_by_message():
    with pytest.raises(RowError, match="row 1: prompt 'weighted' needs 'completion'") as told:
        JudgePrompt.load("weighted").render_all([{"prompt": "", "completion": ""}, {"prompt": "row 9: "}])
    again = pickle.loads(pickle.dumps(told.value))  # errors cross process borders
    assert (again.row, again.reason, str(again)) == (1, told.value.reason, str(told.value))


@pytest.mark.parametrize("reason", ["too long", "row 5: too long"])
def test_a_row_of_a_batch_is_named_by_its_number_in_the_input(reason):
    class Stops(FakeJudge):
        def read_rows(self, prompt, rows, need):
            raise RowError(1, reason)

    scorer = Scorer({"s": ProbabilityWeightedReward(Stops())}, {}, None)
    rows = [{"prompt": "p", "completion": c} for c in "abc"]
    with pytest.raises(InputError, match=f"^row 12: {reason}$"):
        scorer.read(rows, [None, "unusable", None], [10, 11, 12])
