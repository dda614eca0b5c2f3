"""How far it is from the engine's door to the attention: whoever debugs a score steps through few frames of ours."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from test_tree import SHARING, make_blocks, random_trees, with_labels

import latent_rewards
from latent_rewards.engine import packed
from latent_rewards.engine.invariant import InvariantForward
from latent_rewards.engine.tree import TreeForward

OURS = str(Path(latent_rewards.__file__).parent)
MOST = 4  # read, the run of a tree, the block that runs for few rows, and the attention


@pytest.mark.parametrize("kind", [TreeForward, InvariantForward])
def test_few_frames_lie_between_the_engine_and_its_attention(
    kind: type[TreeForward], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = kind(make_blocks(SHARING["llama"]()))
    stacks: list[list[str]] = []
    attention = packed.attention_forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        ours = [frame.name for frame in traceback.extract_stack() if frame.filename.startswith(OURS)]
        stacks.append([*ours, "attention_forward"])
        return attention(*args, **kwargs)

    monkeypatch.setattr(packed, "attention_forward", watched)
    sequences, positions = with_labels(random_trees(1))
    forward.read(sequences, positions, layers=(2,), cuts=[[len(s)] for s in sequences])
    assert forward.usable and len(stacks) >= forward.blocks.n_layers
    assert all(stack[0] == "read" for stack in stacks)
    assert max(map(len, stacks)) <= MOST, max(stacks, key=len)
    assert kind is InvariantForward or any("forward" in stack for stack in stacks), "the deepest block ran for few rows"
