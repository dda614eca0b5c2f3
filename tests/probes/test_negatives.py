import pytest

from latent_rewards.evaluation.attacks import attacked
from latent_rewards.evaluation.benchmarks import load
from latent_rewards.probes.negatives import PHRASES, attack_examples


def test_each_answer_gets_its_negatives():
    prompts = [f"q{i}" for i in range(6)]
    answers = [" ".join([f"word{i}"] * 20) for i in range(6)]
    rows = attack_examples(prompts, answers, others=2, phrases=3)
    assert len(rows) == 6 * 7
    for i in range(6):
        honest, *wrong = [r for r in rows if r.pair == i]
        assert honest.label == 1 and honest.completion == answers[i] and all(r.label == 0 for r in wrong)
        assert all(r.prompt == prompts[i] and r.completion != answers[i] for r in wrong)
        assert {r.completion for r in wrong[:2]} < set(answers) and answers[i].startswith(wrong[2].completion)
        assert len(wrong[2].completion) < len(answers[i]) / 2 and {r.completion for r in wrong[3:]} < set(PHRASES)
    assert attack_examples(prompts, answers) == attack_examples(prompts, answers)
    assert attack_examples(prompts, answers, seed=1) != attack_examples(prompts, answers)
    with pytest.raises(ValueError, match="two prompts or more"):
        attack_examples(["q"], ["a"])


def test_what_is_trained_on_is_not_what_is_measured():
    tried = {text for row in attacked(load("open_ended").items) for text in row}
    assert not tried & set(PHRASES)
