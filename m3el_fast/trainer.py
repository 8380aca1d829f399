"""The training loop: batches, optimiser, validation, early stopping, resume (spec section 8)."""

from __future__ import annotations

import csv
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from m3el_fast.calibration_fit import TEMPERATURES, Evidence
from m3el_fast.config import RunConfig, TrainConfig
from m3el_fast.dataset import Dataset, Split
from m3el_fast.encode import Source
from m3el_fast.errors import InputError
from m3el_fast.evaluate import rank_split
from m3el_fast.evaluate_answers import answer, join
from m3el_fast.files import replace_file
from m3el_fast.hub_results import Results, SplitName, data_name
from m3el_fast.index import EntityIndex
from m3el_fast.metrics import Metrics
from m3el_fast.models import MELModel
from m3el_fast.scorer import Scorer

STATE_FILE = "state.pt"
ANOTHER_OUTPUT = "Give another --output, or remove the folder"
CHECKPOINT = "checkpoint"

_SAVE_SECONDS = 300.0
_LOG_STEPS = 10


@dataclass
class Progress:
    """Where a run stands: ``epoch`` and ``step`` within it come next; ``bad`` validations in a row did not improve."""

    epoch: int = 0
    step: int = 0
    best_mrr: float = -1.0
    bad: int = 0
    stopped: bool = False


class Interrupted(Exception):
    """The run was asked to stop; its state is on disk."""


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of this process: device, processes. Autocast is ours: its settings are process-wide."""
    return Accelerator(
        mixed_precision="no",
        cpu=not torch.cuda.is_available(),  # without it, two processes on a CPU do not find each other
        gradient_accumulation_steps=config.accumulation,
        # an ablation leaves parameters without gradient (a LayerNorm whose features no module reads)
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


class Trainer:
    """Trains ``model`` on ``data`` and keeps the best checkpoint by dev MRR in ``output``.

    Data order and random draws derive from (seed, epoch, step), so a resumed run repeats the uninterrupted one.

    Raises:
        InputError: the batch size cannot be split over the processes, or ``output`` holds another run's state.
    """

    def __init__(
        self, config: RunConfig, model: MELModel, data: Dataset, output: Path, accelerator: Accelerator
    ) -> None:
        self.config, self.train, self.data, self.output, self.accelerator = (
            config,
            config.train,
            data,
            output,
            accelerator,
        )
        processes = accelerator.num_processes
        self.parts = processes * self.train.accumulation
        if self.train.batch_size % self.parts:
            expected = (
                f"a multiple of {self.parts} ({processes} processes x {self.train.accumulation} accumulation steps)"
            )
            raise InputError("train.batch_size", expected, self.train.batch_size)
        self.model = model.to(accelerator.device)
        self.optimizer = make_optimizer(self.model, self.train)
        self.wrapped, self.prepared = accelerator.prepare(self.model, self.optimizer)
        self.split = data.splits["train"]
        self.batches = batch_sizes(len(self.split.gold), self.train.batch_size, self.parts)
        self.progress = Progress()
        self._saved = time.monotonic()
        self._resume()

    def fit(self) -> None:
        """Train to the end, or to the early stop.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
        """
        total = self.train.epochs * len(self.batches)
        done = self.progress.epoch * len(self.batches) + self.progress.step
        main = self.accelerator.is_main_process
        with _StopSignal() as stop, _Log(self.output / "log", self._logged()) if main else _NoLog() as log:
            bar = tqdm(total=total, initial=done, desc="training", unit="step", disable=not main)
            with bar:
                while self.progress.epoch < self.train.epochs and not self.progress.stopped:
                    self._epoch(bar, log, stop)
                    self._save()
                    if self._validates(self.progress.epoch):
                        self._validate(bar, log)
                    self.progress.epoch += 1
                    self.progress.step = 0
                    self._save()
                    if self._any(stop.requested):  # the signal came while the validation ran
                        raise Interrupted

    def _logged(self) -> dict[str, int]:
        """Steps whose log rows stand: a validation that is still to come (again) has none."""
        epochs = self.progress.epoch * len(self.batches)
        return {"train": epochs + self.progress.step, "dev": epochs}

    # -- one epoch ---------------------------------------------------------------------------------------------------

    def _epoch(self, bar: tqdm[Any], log: _Log | _NoLog, stop: _StopSignal) -> None:
        epoch, state = self.progress.epoch, self.progress
        order = torch.randperm(len(self.split.gold), generator=_generator(self.train.seed, epoch))
        batches = order[: sum(self.batches)].split(self.batches)
        self.wrapped.train()
        for step in range(state.step, len(self.batches)):
            number = epoch * len(self.batches) + step
            rate = learning_rate(self.train, number, self.train.epochs * len(self.batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses = self._step(batches[step], _generator(self.train.seed, epoch, step + 1))
            state.step = step + 1
            bar.update()
            if number % _LOG_STEPS == 0 or step + 1 == len(self.batches):
                values = self._mean(losses)
                if not math.isfinite(values["total"]):
                    raise InputError(
                        "training", "a finite loss", f"{values['total']} at step {number}", "Lower train.lr"
                    )
                bar.set_postfix(epoch=epoch + 1, loss=f"{values['total']:.3f}")
                log.write("train", number + 1, {"epoch": epoch + 1, "lr": rate, **values})
            if self._any(stop.requested):
                self._save()
                raise Interrupted
            if self._any(time.monotonic() - self._saved > _SAVE_SECONDS):
                self._save()

    def _step(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """One optimiser step; returns the losses of this process's last micro batch."""
        share = torch.rand(len(batch), generator=generator)
        size = len(batch) // self.parts
        losses: dict[str, Tensor] = {}
        for micro in range(self.train.accumulation):
            first = (micro * self.accelerator.num_processes + self.accelerator.process_index) * size
            rows, own = batch[first : first + size], share[first : first + size]
            gold = self.split.gold[rows]
            device = self.accelerator.device
            with self.accelerator.accumulate(self.wrapped):
                entities, mentions = self.data.entities.inputs(gold, own), self.split.source.inputs(rows)
                with torch.autocast(device.type, torch.bfloat16, enabled=self.train.precision == "bf16"):
                    losses = self.wrapped(entities.to(device), mentions.to(device), gold.to(device))
                self.accelerator.backward(losses["total"])
                if self.accelerator.sync_gradients and self.train.clip_norm is not None:
                    self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.train.clip_norm)
                self.prepared.step()
                self.prepared.zero_grad()
        return losses

    def _mean(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """The losses of the whole batch: means over processes."""
        stacked = torch.stack([value.detach() for value in losses.values()])
        mean: Tensor = self.accelerator.reduce(stacked, "mean")
        return dict(zip(losses, mean.tolist(), strict=True))

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set in any process, so that all of them branch alike."""
        if self.accelerator.num_processes == 1:
            return flag
        total: Tensor = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum")
        return bool(total > 0)

    # -- validation --------------------------------------------------------------------------------------------------

    def _validates(self, epoch: int) -> bool:
        return (epoch + 1) % self.train.eval_every == 0 or epoch + 1 == self.train.epochs

    def _validate(self, bar: tqdm[Any], log: _Log | _NoLog) -> None:
        scorer = kb_scorer(self.accelerator, self.model, self.data.entities)
        ranks = distributed_ranks(self.accelerator, scorer, self.data.splits["dev"])
        metrics = Metrics.of(ranks["union"])
        state = self.progress
        improved = metrics.mrr > state.best_mrr
        state.best_mrr = max(metrics.mrr, state.best_mrr)
        state.bad = 0 if improved else state.bad + 1
        state.stopped = state.bad >= self.train.patience
        if self.accelerator.is_main_process:
            hits = {f"hits@{k}": value for k, value in metrics.hits.items()}
            step = (state.epoch + 1) * len(self.batches)
            log.write("dev", step, {"epoch": state.epoch + 1, "mrr": metrics.mrr, "mr": metrics.mr, **hits})
            note = "best so far" if improved else f"no better, {state.bad} of {self.train.patience}"
            bar.write(f"epoch {state.epoch + 1}: dev Hits@1 {metrics.hits[1]:.4f}, MRR {metrics.mrr:.4f} ({note})")
            if improved:
                self.model.results = measured(self.config, self.data, {"dev": metrics})
                self.model.save_pretrained(self.output / CHECKPOINT)
        self.accelerator.wait_for_everyone()

    # -- state -------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "config": self.config.dump(),
                "progress": asdict(self.progress),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng": torch.get_rng_state(),
            }
            with replace_file(self.output / STATE_FILE) as temporary:
                torch.save(state, temporary)
        self._saved = time.monotonic()
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        path = self.output / STATE_FILE
        if not path.exists():
            return
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        if state["config"] != self.config.dump():
            expected, got = "the state of a run with this configuration", "another configuration's"
            raise InputError(path, expected, got, ANOTHER_OUTPUT)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        self.progress = Progress(**state["progress"])


def measured(config: RunConfig, data: Dataset, splits: dict[SplitName, Metrics]) -> Results:
    """The results that a checkpoint keeps: metrics of the full model by split."""
    assert config.data.dir is not None
    return Results(data=data_name(Path(config.data.dir)), entities=len(data.kb.entities), splits=splits)


def kb_scorer(accelerator: Accelerator, model: MELModel, entities: Source) -> Scorer:
    """Of the KB as ``model`` encodes it, which every process does."""
    return Scorer(model, EntityIndex.build(model, entities, progress=accelerator.is_main_process))


def distributed_ranks(accelerator: Accelerator, scorer: Scorer, split: Split) -> dict[str, Tensor]:
    """Ranks of a split's golds by component; every process ranks its share of the mentions, all get the whole."""
    rows = torch.arange(len(split.gold))[accelerator.process_index :: accelerator.num_processes]
    parts = [p for p in gather_object([rank_split(scorer, split, rows, accelerator.is_main_process)]) if p]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def distributed_evidence(accelerator: Accelerator, scorer: Scorer, splits: Sequence[Split]) -> Evidence:
    """What a calibration is fitted to; every process answers its share of the mentions, all get the whole."""
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    own = answer(scorer, splits, 1, TEMPERATURES, share=share, progress=accelerator.is_main_process)
    return join(gather_object(own)).evidence()


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorms are not decayed (the released code means to, but matches no LayerNorm)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                exempt = name.endswith("bias") or isinstance(module, nn.LayerNorm)
                (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Rate of optimiser step ``step`` (from 0) of ``total``: linear warm-up, then constant or half a cosine to zero."""
    warmup = math.ceil(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def batch_sizes(items: int, batch: int, parts: int) -> list[int]:
    """Sizes of an epoch's batches: full ones, and the rest trimmed to a multiple of ``parts``.

    Raises:
        InputError: not even ``parts`` items.
    """
    rest = items % batch - items % batch % parts
    sizes = [batch] * (items // batch) + ([rest] if rest else [])
    if not sizes:
        raise InputError("training split", f"at least {parts} mentions", items)
    return sizes


def _generator(*seeds: int) -> torch.Generator:
    """A generator of its own for each (seed, epoch, step)."""
    value = 0
    for seed in seeds:
        value = (value * 1_000_003 + seed + 1) % (1 << 63)
    return torch.Generator().manual_seed(value)


class _StopSignal:
    """While entered, SIGINT and SIGTERM set ``requested``; a second one ends the process at once."""

    requested = False

    def __enter__(self) -> _StopSignal:
        self._old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class _Log:
    """CSV files (``train.csv``, ``dev.csv``) and TensorBoard events; rows of later steps than ``done`` are dropped."""

    def __init__(self, folder: Path, done: dict[str, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for path in folder.glob("*.csv"):
            with path.open(newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [[]]
            with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *(row for row in rows if int(row[0]) <= done[path.stem])])
        purge = done["train"] + 1 if done["train"] else None
        self.board = SummaryWriter(str(folder), purge_step=purge)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self.board.close()

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        path = self.folder / f"{kind}.csv"
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["step", *values])
            writer.writerow([step, *values.values()])
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)


class _NoLog:
    """What every process but the first logs to."""

    def __enter__(self) -> _NoLog:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def write(self, kind: str, step: int, values: dict[str, float]) -> None: ...
