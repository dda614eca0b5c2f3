import json

import numpy as np
import pytest
import torch

from latent_rewards.files import artefact


def load(path):
    with artefact.opened(path, "thing", "a thing") as (about, tensors):
        return about, tensors


def test_what_is_saved_comes_back(tmp_path):
    given = {"a": np.arange(6, dtype=np.int64).reshape(2, 3).T, "b": torch.rand(2, 2).T, "none": np.zeros(0)}
    about, tensors = load(artefact.save(tmp_path / "new", "thing", {"n": [1, None], "nan": float("nan")}, given))
    assert about == {"n": [1, None], "nan": None}
    assert all(np.array_equal(tensors[k], given[k]) and tensors[k].numpy().dtype == np.asarray(given[k]).dtype
               for k in given)  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: {**raw, "n": 2}, "checksum does not fit"),
        (lambda raw: {**raw, "format": 2}, "format 1, got 2"),
        (lambda raw: [raw], "format 1, got 'list'"),
    ],
)
def test_an_edited_description_is_refused(tmp_path, edit, message):
    artefact.save(tmp_path, "thing", {"n": 1}, {"a": np.ones(3)})
    raw = json.loads((tmp_path / "thing.json").read_text())
    (tmp_path / "thing.json").write_text(json.dumps(edit(raw)))
    with pytest.raises(ValueError, match=f"{tmp_path}: not a thing: .*{message}"):
        load(tmp_path)


def test_other_tensors_cut_ones_and_none_are_refused(tmp_path):
    for value in (1.0, 2.0):
        artefact.save(tmp_path / str(value), "thing", {}, {"a": np.full(3, value)})
    path = tmp_path / "1.0" / "thing.safetensors"
    path.write_bytes((tmp_path / "2.0" / "thing.safetensors").read_bytes())
    with pytest.raises(ValueError, match="checksum"):
        load(path.parent)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short"):
        load(path.parent)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no thing: thing\.safetensors is missing"):
        load(path.parent)


def test_what_is_wrong_with_a_value_says_more_than_the_checksum(tmp_path):
    artefact.save(tmp_path, "thing", {"n": 1}, {})
    (tmp_path / "thing.json").write_text('{"format": 1, "n": -1, "sha256": "0"}')
    with (
        pytest.raises(ValueError, match="n must be positive"),
        artefact.opened(tmp_path, "thing", "a thing") as (about, _),
    ):
        if about["n"] < 0:
            raise ValueError("n must be positive")
