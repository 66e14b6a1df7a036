"""The training loop. It knows no algorithm: batches in, metrics out, checkpoints on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NoReturn

import torch

from offmarl.data.table import Transitions
from offmarl.data.units import Units
from offmarl.errors import DataError, OffmarlError, UsageError
from offmarl.learners.base import USUAL_BATCH, Learner
from offmarl.native.library import Kernels, bfloat16, kernels
from offmarl.settings import Count, Positive, departures
from offmarl.streams import stream
from offmarl.training.checkpoint import Checkpoint
from offmarl.training.logging import Averages, MetricsLog
from offmarl.training.memory import keep_freed_memory
from offmarl.training.precision import matmul_precision
from offmarl.training.run import RunFolder


@dataclass
class TrainConfig:
    """Settings of the loop."""

    steps: Count = 2_000  # joint updates of all agents; OMAR (Pan et al. 2022): 2,000 in its MPE tasks
    # For each seed: transitions, whole episodes where networks have a memory, single agents where views are rendered;
    # null: 1,024 (OMAR), 32 (PyMARL), 128.
    batch_size: Count | None = None
    log_every: Count = 50
    checkpoint_every: Count = 500  # a multiple of log_every
    tensorboard: bool = True
    # A run whose mean |Q| goes beyond this has diverged. With rewards of standard deviation 1, the default, values
    # stay below |r| / (1 - γ): thousands at most.
    q_limit: Positive = 1e6
    # PyTorch's precision of float32 products; "auto": the fastest that is as exact as "highest" on this machine;
    # "bfloat16": compiled perceptrons round hidden layers, and what is multiplied between them, to 8 bits.
    matmul_precision: Literal["auto", "highest", "high", "medium", "bfloat16"] = "auto"
    # Who runs networks on a CPU: code compiled for it where there is a compiler ("auto"), or PyTorch's operations.
    kernels: Kernels = "auto"

    def check(self, device: torch.device | str = "cpu") -> None:
        """Raise `UsageError` for settings that do not fit together, or that `device` cannot do."""
        if self.checkpoint_every % self.log_every:
            raise UsageError(
                f"train.checkpoint_every={self.checkpoint_every} is no multiple of "
                f"train.log_every={self.log_every}"
            )
        with kernels(self.kernels), matmul_precision(self.matmul_precision, torch.device(device)):
            pass


@dataclass(frozen=True)
class AlongTheWay:
    """Something that is measured of the learner while it trains and logged beside its metrics; it changes nothing."""

    every: int  # updates, a multiple of log_every
    measure: Callable[[Learner], dict[str, list[float]]]  # metrics [S]

    def check(self, config: TrainConfig) -> None:
        """Raise `UsageError` where metrics are not logged at the steps that it measures."""
        if self.every % config.log_every:
            raise UsageError(
                f"evaluating every {self.every} updates: that is no multiple of train.log_every={config.log_every}"
            )


def train(
    learner: Learner,
    data: Transitions | Units,
    config: TrainConfig,
    run: RunFolder,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    along: AlongTheWay | None = None,
) -> dict[str, float]:
    """Train `learner` for `config.steps` updates, with metrics and checkpoints in `run`.

    Returns the last metrics, averaged over seeds. With `resume` it goes on from the run's checkpoint, if
    there is one, to the very numbers of an uninterrupted run. Raises `OffmarlError` if training diverges (a
    number that is not finite, or Q beyond `config.q_limit`); the last good checkpoint stays.
    """
    config.check(learner.device)
    if along is not None:
        along.check(config)
    if learner.device.type == "cpu":
        keep_freed_memory()
    sampling = [stream(seed, "train", "sample", device=data.device) for seed in learner.seeds]
    step, metrics = 0, {}
    if resume and run.checkpoint_path.exists():
        saved = Checkpoint.load(run.checkpoint_path)
        expected = [generator.get_state() for generator in sampling]
        if saved.sampling.shape != torch.stack(expected).shape:
            raise DataError(
                f"{run.checkpoint_path} does not hold what drew the batches of {len(sampling)} seeds"
            )
        learner.load_state_dict(saved.learner)
        for generator, state in zip(sampling, saved.sampling, strict=True):
            generator.set_state(state.clone())  # PyTorch crashes on a view that starts elsewhere
        step, metrics = saved.step, saved.metrics
    else:
        learner.observe(data.statistics())
    learner.see(data)
    board = run.folder / "tensorboard" if config.tensorboard else None
    averages = Averages()
    with (
        MetricsLog(run.metrics_path, step, board) as log,
        kernels(config.kernels) as worker,
        matmul_precision(config.matmul_precision, learner.device) as precision,
    ):
        run.update(status="running", error=None, steps=step, matmul_precision=precision, kernels=worker)
        batch_size = config.batch_size or USUAL_BATCH[learner.batch_unit]
        while step < config.steps:
            batch = learner.sample(data, batch_size, sampling)
            step += 1
            try:
                averages.add(learner.update(batch))
            except FloatingPointError as error:
                _fail(str(error), step, run, learner)
            except OffmarlError as error:  # settings that only an update can refuse
                run.update(status="failed", error=str(error))
                raise
            if progress is not None:
                progress(step, config.steps)
            last = step == config.steps
            if step % config.log_every == 0 or last:
                metrics = averages.read()
                _check_finite(metrics, step, run, learner)
                _check_values(metrics.get("q_mean", []), config.q_limit, step, run, learner)
                if along is not None and (step % along.every == 0 or last):
                    with bfloat16(False):  # as the policy will act
                        metrics |= along.measure(learner)
                log.write(step, metrics)
            if step % config.checkpoint_every == 0 or last:
                state = learner.state_dict()
                _check_finite(
                    {name: [float(tensor.sum())] for name, tensor in state.items()}, step, run, learner
                )
                log.sync()
                states = torch.stack([generator.get_state() for generator in sampling])
                Checkpoint(step, state, states, metrics).save(run.checkpoint_path)
                run.update(steps=step)
    summary = {name: sum(seeds) / len(seeds) for name, seeds in metrics.items()}
    run.update(status="complete", summary=summary)
    return summary


def _check_finite(values: dict[str, list[float]], step: int, run: RunFolder, learner: Learner) -> None:
    """Stop a run that diverged, before it spoils its checkpoint."""
    for name, numbers in values.items():
        bad = next((number for number in numbers if not isfinite(number)), None)
        if bad is not None:
            _fail(f"{name} is {bad}", step, run, learner)


def _check_values(q_mean: list[float], limit: float, step: int, run: RunFolder, learner: Learner) -> None:
    """Stop a run whose values left what its rewards can be worth."""
    largest = max(q_mean, key=abs, default=0.0)
    if abs(largest) > limit:
        _fail(f"q_mean is {largest:.3g}, beyond train.q_limit={limit:g}", step, run, learner)


def _fail(what: str, step: int, run: RunFolder, learner: Learner) -> NoReturn:
    """Record that the run failed, and say what is kept and what to lower."""
    kept = "no checkpoint had been written yet"
    if run.checkpoint_path.exists():
        kept = f"the checkpoint of step {Checkpoint.load(run.checkpoint_path).step} is kept"
    lowered = learner.to_lower()
    lower = " or ".join(f"learner.{name} (now {value:g})" for name, value in lowered.items())
    error = f"training diverged by step {step}: {what}; {kept}. Lower {lower} with --set and train anew"
    chosen = [
        f"learner.{name}={value}"
        for name, value in departures(learner.settings).items()
        if name not in lowered
    ]
    if chosen:
        error += f"; it may also be what was chosen instead of a default: {', '.join(chosen)}"
    run.update(status="failed", error=error)
    raise OffmarlError(error)
