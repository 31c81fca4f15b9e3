import numpy as np
import pytest

from lab import grid as grids
from lab.grid import grid


def tiny(arm_size=1.0, lr=0.1, seed=0, steps=3):
    return {"loss": np.arange(steps) * lr + seed, "size": arm_size, "outcome": "end"}


@pytest.fixture
def swept(monkeypatch):
    asked = []

    def sweep(run, arguments, label):
        asked.extend(arguments)
        return [run(**given) for given in arguments]

    monkeypatch.setattr(grids, "sweep", sweep)
    return asked


def test_a_grid_names_its_axes(swept):
    arms = {"small": {}, "large": {"arm_size": 9.0}}
    found = grid(tiny, "test", {"arm": arms, "lr": [0.1, 0.2], "seed": range(3)}, {"loss": ["step"]}, steps=4)
    assert found["loss"].dims == ("arm", "lr", "seed", "step") and found["loss"].shape == (2, 2, 3, 4)
    assert found["loss"].sel(arm="small", lr=0.2, seed=2)[1] == pytest.approx(2.2)
    assert found["size"].sel(arm="large").values.tolist() == [[9.0] * 3] * 2
    assert swept[0] == {"steps": 4, "lr": 0.1, "seed": 0} and swept[-1]["arm_size"] == 9.0
    assert set(found["outcome"].values.ravel()) == {"end"}


def test_arguments_are_plain_and_later_axes_win(swept):
    grid(tiny, "test", {"arm": {"fast": {"lr": 1.0, "steps": 2}}, "lr": [0.5]}, steps=3)
    assert swept == [{"lr": 0.5, "steps": 2}]


def test_shorter_arrays_end_with_nan(swept):
    found = grid(tiny, "test", {"steps": [2, 4]}, seed=1)
    assert found["loss"].dims == ("steps", "loss_0")
    assert np.isnan(found["loss"].values[0]).tolist() == [False, False, True, True]


def test_what_cannot_be_put_together_is_refused(monkeypatch):
    results = [{"a": np.ones(2)}, {"a": np.ones((2, 2))}]
    monkeypatch.setattr(grids, "sweep", lambda run, arguments, label: results)
    with pytest.raises(ValueError, match="a: shapes"):
        grid(tiny, "test", {"seed": [0, 1]})
    results[:] = [{"a": np.array(["x"])}, {"a": np.array(["x", "y"])}]
    with pytest.raises(ValueError, match="a: shapes"):
        grid(tiny, "test", {"seed": [0, 1]})
