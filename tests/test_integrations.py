"""The recipes of docs/library.md, section "Elsewhere", as they stand there, each on a tiny model without a network."""

import re

import pytest
import torch
from torch import nn

from kadam import KAdam
from lab.files import ROOT


def needs(name):
    reason = f"{name} is not installed (`make test-integrations` installs it)"
    return pytest.importorskip(name, reason=reason, exc_type=ModuleNotFoundError)


def recipe(name):
    """The code of the section that imports from the framework ``name``."""
    section = re.search(r"^##+ Elsewhere\n(.*?)(?=^##+ |\Z)", (ROOT / "docs" / "library.md").read_text(), re.M | re.S)
    assert section, "docs/library.md has no section 'Elsewhere'"
    (code,) = [
        c
        for c in re.findall(r"```python\n(.*?)```", section[1], re.S)
        if re.search(rf"^(from|import) {name}\b", c, re.M)
    ]
    return code


def values(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def language_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def sentences(count=24):
    tokens = torch.randint(32, (count, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


@pytest.mark.parametrize("name", ["transformers", "accelerate", "lightning"])
def test_a_recipe_is_short(name):
    code = recipe(name)
    compile(code, name, "exec")
    assert "KAdam(" in code or "KAdam," in code
    assert len([line for line in code.splitlines() if line]) <= 8


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Frameworks write into the working directory, and look for models in the home directory and on the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def test_hugging_face_trainer(tmp_path):
    transformers = needs("transformers")
    needs("accelerate")

    def arguments(folder):
        return transformers.TrainingArguments(
            output_dir=str(tmp_path / folder), max_steps=6, save_steps=3, per_device_train_batch_size=4, seed=0,
            weight_decay=0.01, use_cpu=True, report_to=[], disable_tqdm=True,
        )  # fmt: skip

    def run(folder, code):
        names = {"model": language_model(), "arguments": arguments(folder), "data": sentences()}
        exec(code, names)
        return names["trainer"]

    code = recipe("transformers")
    whole = run("whole", code)
    optimizer = whole.optimizer.optimizer  # inside Accelerate's
    assert type(optimizer) is KAdam
    assert [(group["k"], group["weight_decay"]) for group in optimizer.param_groups] == [(2, 0.01), (2, 0.0)]
    assert all(state["step"] == 6 and "exp_avg_sq_2" in state for state in optimizer.state.values())
    assert not torch.equal(values(whole.model), values(language_model()))

    # a new trainer, model and optimizer, from the checkpoint in the middle
    assert "trainer.train()" in code
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed = run("resumed", code.replace("trainer.train()", f"trainer.train({str(checkpoint)!r})"))
    assert torch.equal(values(resumed.model), values(whole.model))
    # a check that can fail: without the optimizer's state the end is another one
    (checkpoint / "optimizer.pt").unlink()
    forgetful = run("forgetful", code.replace("trainer.train()", f"trainer.train({str(checkpoint)!r})"))
    assert not torch.equal(values(forgetful.model), values(whole.model))


def test_accelerate(tmp_path):
    needs("accelerate")
    needs("transformers")  # for the model

    def run(before="pass", rows=slice(None)):
        data = torch.utils.data.DataLoader(sentences()[rows], batch_size=4)
        model = language_model().eval()  # no dropout
        names = {"model": model, "data": data}
        first, loop, rest = code.partition("for batch in data:")
        assert loop
        exec(first, names)
        exec(before, names)
        exec(loop + rest, names)
        return names

    code = recipe("accelerate")
    whole = run()
    assert type(whole["optimizer"].optimizer) is KAdam
    assert {state["step"].item() for state in whole["optimizer"].optimizer.state.values()} == {6}
    assert not torch.equal(values(whole["model"]), values(language_model()))

    half = run(rows=slice(12))
    half["accelerator"].save_state(str(tmp_path / "half"))
    resumed = run(f"accelerator.load_state({str(tmp_path / 'half')!r})", slice(12, None))
    assert torch.equal(values(resumed["model"]), values(whole["model"]))
    assert not torch.equal(values(run(rows=slice(12, None))["model"]), values(whole["model"]))


def test_lightning(tmp_path):
    lightning = needs("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

        def training_step(self, batch, index):
            return (self.layers(batch) ** 2).mean()

    trainers = []

    class Trainer(lightning.Trainer):
        """The one that the recipe takes, kept so that it can be looked at; on a CPU, quiet, with a checkpoint."""

        def __init__(self, **arguments):
            keep = lightning.pytorch.callbacks.ModelCheckpoint(save_top_k=-1, filename="{epoch}")
            super().__init__(
                **arguments, accelerator="cpu", devices=1, callbacks=[keep], logger=False, enable_progress_bar=False,
                enable_model_summary=False,
            )  # fmt: skip
            trainers.append(self)

    def run(code):
        data = torch.utils.data.DataLoader(torch.randn(24, 4, generator=torch.Generator().manual_seed(1)), batch_size=4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lightning, "Trainer", Trainer)
            exec(code, {"Module": Module, "data": data})
        return trainers[-1]

    code = recipe("lightning")
    whole = run(code)
    (optimizer,) = whole.optimizers
    assert type(optimizer) is KAdam
    assert {state["step"].item() for state in optimizer.state.values()} == {12}
    assert not torch.equal(values(whole.lightning_module), values(Module()))

    (checkpoint,) = tmp_path.rglob("epoch=0*.ckpt")
    assert ".fit(WithKAdam(), data)" in code
    resumed = run(code.replace("data)", f"data, ckpt_path={str(checkpoint)!r})"))
    assert resumed.lightning_module is not whole.lightning_module
    assert {state["step"].item() for state in resumed.optimizers[0].state.values()} == {12}
    assert torch.equal(values(resumed.lightning_module), values(whole.lightning_module))
    # a check that can fail: with other moments the end is another one
    state = torch.load(checkpoint, weights_only=True)
    for moments in state["optimizer_states"][0]["state"].values():
        moments["exp_avg_2"].zero_()
    torch.save(state, tmp_path / "other.ckpt")
    other = run(code.replace("data)", f"data, ckpt_path={str(tmp_path / 'other.ckpt')!r})"))
    assert not torch.equal(values(other.lightning_module), values(whole.lightning_module))
