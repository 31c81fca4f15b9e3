import json
import random

import numpy as np
import pytest
import torch

from lab import data


def test_mnist1d_is_the_published_set():
    parts = data.mnist1d()
    assert parts.x.shape == (4000, 40) and parts.x_validation.shape == parts.x_test.shape == (1000, 40)
    assert parts.x.dtype == torch.float32 and parts.y.dtype == torch.int64 and set(parts.y.tolist()) == set(range(10))
    test = {row.numpy().tobytes() for row in parts.x_test}
    for other in (parts.x, parts.x_validation):
        assert not test & {row.numpy().tobytes() for row in other}


def test_generating_leaves_the_callers_generators_alone():
    random.seed(3), np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3), np.random.seed(3)
    data._generate_mnist1d(7)
    assert (random.random(), np.random.random()) == expected


def test_a_wrong_set_is_refused(tmp_path, monkeypatch):
    registry = json.loads((data.ROOT / "data" / "registry.json").read_text())
    registry["mnist1d"]["labels_sha256"] = "0" * 64
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registry.json").write_text(json.dumps(registry))
    monkeypatch.setattr(data, "ROOT", tmp_path)
    with pytest.raises(data.DataError, match=r"'mnist1d'.*mnist1d .*SHA-256.*registry.json"):
        data.mnist1d.__wrapped__()


def test_words_have_rare_tokens():
    text = data.words()
    counts = torch.bincount(text.tokens)
    assert len(text.tokens) > 80_000 and len(counts) == len(text.vocabulary) > 4_000
    assert (counts == 1).sum() > 1_000
    assert counts[0] == counts.max() and text.vocabulary[text.tokens[0]] in text.vocabulary


def test_checksum():
    assert len(data.checksum("words")) == 64 and data.checksum("words") != data.checksum("mnist1d")
    with pytest.raises(ValueError, match="name: 'c4'"):
        data.checksum("c4")
