"""Training: it learns, resumes bitwise, equals itself over two processes, follows the papers' schedule."""

from __future__ import annotations

import csv
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import nn

from m3el_fast import trainer as trainer_module
from m3el_fast.config import RunConfig, TrainConfig
from m3el_fast.errors import InputError
from m3el_fast.train import main, make_model, train
from m3el_fast.trainer import Interrupted, Trainer, batch_sizes, learning_rate, make_optimizer
from tiny import tiny_config, write_tiny

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("M3EL_CACHE", str(tmp_path / "cache"))
    return write_tiny(tmp_path / "data", mentions=40)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def state(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "state.pt", weights_only=True)["model"]
    return found


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """SIGTERM arrives during the given step, counted over the process."""
    original, count = Trainer._step, iter(range(1, 10_000))

    def step(self: Trainer, *args: object) -> object:
        if next(count) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", step)


def test_a_signal_during_the_last_validation_stops_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(data, epochs=1)
    with monkeypatch.context() as patch:
        validate = Trainer._validate

        def interrupted(self: Trainer, *args: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            validate(self, *args)  # type: ignore[arg-type]

        patch.setattr(Trainer, "_validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / "results.json").exists()


def test_a_stopped_run_resumes_to_the_same_bits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the first step, the last but one and the last of an epoch, and in the middle of the second."""
    config, whole = tiny_config(data), tmp_path / "whole"
    train(config, whole)
    for steps in (1, 4, 5, 7):
        parts = tmp_path / f"after-{steps}-of-10-steps"
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(KeyboardInterrupt):
                train(config, parts)
        assert not (parts / "results.json").exists()
        train(config, parts)
        assert equal(state(whole), state(parts)), parts
        assert equal(weights(whole), weights(parts)), parts
        for log in ("train.csv", "dev.csv"):
            assert (whole / "log" / log).read_text() == (parts / "log" / log).read_text(), parts


def test_a_killed_process_resumes_to_the_same_bits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL between two saves: what came after the last one is computed again."""
    config = tiny_config(data, epochs=3)
    train(config, tmp_path / "whole")
    (tmp_path / "tiny.yaml").write_text(config.dump())
    script = (
        "import os, signal, sys\n"
        "from m3el_fast import trainer\n"
        "from m3el_fast.train import main\n"
        "trainer._SAVE_SECONDS = 1e9\n"
        "step, count = trainer.Trainer._step, iter(range(100))\n"
        "def killed(self, *args):\n"
        "    if next(count) == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *args)\n"
        "trainer.Trainer._step = killed\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "parts")]
    done = python("-c", script, *arguments, folder=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    monkeypatch.setattr(trainer_module, "_SAVE_SECONDS", 0.0)
    train(config, tmp_path / "parts")
    assert equal(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_training_learns_and_keeps_the_best_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(data, epochs=12, lr=2e-3), tmp_path / "run")
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "run" / "log" / "dev.csv").open()))
    assert max(float(row["mrr"]) for row in rows) > float(rows[0]["mrr"])
    losses = [float(row["total"]) for row in csv.DictReader((tmp_path / "run" / "log" / "train.csv").open())]
    assert losses[-1] < losses[0]
    for expected in (
        "full model",
        "text only",
        "image only",
        "untrained",
        "m3el_fast.link",
        "left out: 1 nil, 1 not in the KB",
    ):
        assert expected in printed
    assert list((tmp_path / "run" / "log").glob("events*"))


def test_a_finished_run_is_shown_again_not_trained_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(data), tmp_path / "run")
    before = (tmp_path / "run" / "state.pt").stat().st_mtime_ns
    capsys.readouterr()
    train(tiny_config(data), tmp_path / "run")
    assert "holds a finished run" in capsys.readouterr().out
    with pytest.raises(InputError, match="run with this configuration, got a finished one with another"):
        train(tiny_config(data, lr=0.5), tmp_path / "run")
    assert (tmp_path / "run" / "state.pt").stat().st_mtime_ns == before


def test_another_configuration_is_refused(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data), tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(InputError, match=r"state\.pt: expected the state of a run with this configuration"):
        train(tiny_config(data, lr=1e-3), tmp_path / "run")


def test_early_stopping(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, epochs=50, lr=1e-12, patience=2), tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "log" / "dev.csv").open()))
    assert len(rows) == 3  # the first is the best; two without improvement


def test_a_loss_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training: expected a finite loss, got (nan|inf)"):
        train(tiny_config(data, epochs=20, lr=1e30), tmp_path / "run")


FORMS: dict[str, dict[str, object]] = {"m3el": {}, "mimic": {"type": "mimic"}}
SLOW_FORMS: dict[str, dict[str, object]] = {
    "released": {"union": "released", "icl_variant": "released"},
    "no-cross": {"cross": False},
    "mclet": {"contrastive": "mclet", "pooling": "soft", "mask_duplicates": True},
}
EVERY_FORM = """
import sys
from accelerate import Accelerator
from m3el_fast.train import main
end, names = Accelerator.end_training, sys.argv[1:]
for name in names:  # the processes stay connected until the last run ends
    Accelerator.end_training = end if name == names[-1] else lambda self: None
    main(["--config", f"{name}.yaml", "--output", f"two-{name}"])
"""


@pytest.mark.parametrize("forms", [FORMS, pytest.param(SLOW_FORMS, marks=pytest.mark.slow)], ids=", ".join)
def test_two_processes_equal_one(data: Path, tmp_path: Path, forms: dict[str, dict[str, object]]) -> None:
    """20 steps of the same global batch, gloo; fp32 within 1e-5, and 5e-5 for the key biases of the towers.

    Their gradient is zero but for rounding, which Adam divides by its own size: a smaller eps than the papers' 1e-4
    would blow it up to lr.
    """
    assert 4 * len(batch_sizes(40, 8, 2)) == 20
    (tmp_path / "every_form.py").write_text(EVERY_FORM)
    for name, form in forms.items():
        config = tiny_config(data, form, epochs=4, lr=1e-3, eps=1e-4, eval_every=4)
        (tmp_path / f"{name}.yaml").write_text(config.dump())
        train(config, tmp_path / f"one-{name}")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "every_form.py", *forms]
    done = python(*launch, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for form in forms:
        one, two = tmp_path / f"one-{form}", tmp_path / f"two-{form}"
        left, right = state(one), state(two)
        for name, value in left.items():
            atol = 5e-5 if name.endswith("k_proj.bias") else 1e-5
            where = f"{form}, {name}: "
            torch.testing.assert_close(right[name], value, rtol=0, atol=atol, msg=where.__add__)
        for log in ("train.csv", "dev.csv"):
            logs = [np.genfromtxt(run / "log" / log, delimiter=",", skip_header=1) for run in (one, two)]
            np.testing.assert_allclose(*logs, rtol=0, atol=1e-4, err_msg=form)


def test_accumulation_takes_the_mean_of_micro_batches(data: Path, tmp_path: Path) -> None:
    for run, steps in (("one", 1), ("two", 2)):
        train(tiny_config(data, accumulation=steps, epochs=1), tmp_path / run)
    # micro batches are each other's strangers, not negatives: other weights, but as many steps
    assert not equal(state(tmp_path / "one"), state(tmp_path / "two"))
    with pytest.raises(InputError, match=r"train\.batch_size: expected a multiple of 3"):
        train(tiny_config(data, accumulation=3), tmp_path / "three")


def test_bf16_and_frozen_and_clipped_training_run(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, precision="bf16", clip_norm=1.0, schedule="cosine", warmup=0.1), tmp_path / "bf16")
    train(tiny_config(data, freeze_encoder=True), tmp_path / "frozen")
    initial = {n: p for n, p in state(tmp_path / "frozen").items() if n.startswith("encoder.model.")}
    set_seed(5)
    fresh = make_model(tiny_config(data)).state_dict()
    assert initial
    assert all(torch.equal(fresh[name], value) for name, value in initial.items())
    trained = state(tmp_path / "frozen")
    assert not torch.equal(trained["encoder.image_global_proj.weight"], fresh["encoder.image_global_proj.weight"])


def test_frozen_features_are_stored_once(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, freeze_encoder=True)
    train(config, tmp_path / "run")
    stores = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "features").rglob("*.npy")}
    assert len(stores) == 16
    (tmp_path / "run" / "results.json").unlink()
    train(config, tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in stores} == stores


def test_schedule() -> None:
    constant = TrainConfig(lr=1.0)
    assert {learning_rate(constant, step, 100) for step in range(100)} == {1.0}
    cosine = TrainConfig(lr=1.0, schedule="cosine", warmup=0.1)
    rates = [learning_rate(cosine, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001


def test_batch_sizes_split_over_processes() -> None:
    assert batch_sizes(40, 8, 2) == [8] * 5
    assert batch_sizes(43, 8, 2) == [8] * 5 + [2]
    assert batch_sizes(41, 8, 2) == [8] * 5
    assert batch_sizes(3, 8, 1) == [3]
    with pytest.raises(InputError, match="at least 4 mentions, got 3"):
        batch_sizes(3, 8, 4)


def test_biases_and_layer_norms_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Embedding(4, 2))
    decayed, plain = make_optimizer(model, TrainConfig()).param_groups
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[2].weight)}
    assert {id(p) for p in plain["params"]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-4, 0.0)
    assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.999), 1e-4)


def test_overrides_reach_the_configuration(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(data).dump())
    main(["--config", str(path), "--output", str(tmp_path / "run"), "--set", "train.epochs=1", "--set", "model.d=4"])
    trained = RunConfig.load(tmp_path / "run" / "checkpoint" / "config.yaml")
    assert (trained.train.epochs, trained.model.d) == (1, 4)


def test_interrupted_is_what_a_signal_raises(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 2)
    raised: list[type[BaseException]] = []
    fit = Trainer.fit

    def spy(self: Trainer) -> None:
        try:
            fit(self)
        except BaseException as error:
            raised.append(type(error))
            raise

    monkeypatch.setattr(trainer_module.Trainer, "fit", spy)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(data), tmp_path / "run")
    assert raised == [Interrupted]
    assert (tmp_path / "run" / "state.pt").exists()
