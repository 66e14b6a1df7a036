"""From a dataset to a run: check what was asked, load, choose the rewards, train."""

import hashlib
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import offmarl
from offmarl.atomic import only_one
from offmarl.credit.relabel import BUILT_IN, require_rewards, rewards_for
from offmarl.data.catalog import runs_folder
from offmarl.data.load import load_transitions, load_units
from offmarl.data.store import Dataset
from offmarl.data.table import Transitions
from offmarl.data.units import Units
from offmarl.data.validate import require_valid
from offmarl.errors import DataError, UsageError
from offmarl.learners.base import USUAL_BATCH, Learner
from offmarl.learners.registry import learner_class, make_learner, task_kind
from offmarl.reporter import Reporter, Silent
from offmarl.settings import configure, departures
from offmarl.training.checkpoint import Checkpoint
from offmarl.training.loop import AlongTheWay, TrainConfig, train
from offmarl.training.run import RECORD_NAME, RunFolder, seeds_text


@dataclass
class TrainRequest:
    """What somebody wants trained."""

    learner: str
    rewards: str  # team, mean, true, or a decomposition: its name or file
    seeds: Sequence[int] = (0,)
    learner_settings: dict[str, Any] = field(default_factory=dict)
    train_settings: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None  # folder of the run; None: below the home folder, by its id
    resume: bool = False
    overwrite: bool = False
    device: str = "cpu"
    command: str = ""
    along: AlongTheWay | None = None  # what to measure while training


def train_offline(dataset: Dataset, request: TrainRequest, reporter: Reporter | None = None) -> RunFolder:
    """Train on `dataset` as asked and return the complete run.

    Raises `UsageError` before anything is written for a wrong name or setting, or a run that exists;
    `DataError` for damaged data; `OffmarlError` if training diverges.
    """
    reporter = reporter or Silent()
    if request.resume and request.overwrite:
        raise UsageError("--resume and --overwrite: give one of the two")
    spec, seeds = dataset.card.env, list(request.seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds {seeds}: give at least one, and each once")
    config_class = learner_class(request.learner, task_kind(spec)).config_class
    learner_config = configure(config_class, request.learner_settings, "learner")
    train_config = configure(TrainConfig, request.train_settings, "train")
    train_config.check(request.device)
    if request.along is not None:
        request.along.check(train_config)
    dataset.require_complete()
    learner = make_learner(request.learner, spec, request.learner_settings, seeds, request.device)
    batch_size = train_config.batch_size or USUAL_BATCH[learner.batch_unit]
    held = dataset.card.episodes if learner.batch_unit == "episodes" else dataset.card.transitions
    if learner.batch_unit != "units" and batch_size > held:  # how many live is known once they are read
        raise UsageError(
            f"train.batch_size={batch_size} is larger than the data: {dataset.card.id} has {held} "
            f"{learner.batch_unit}; lower it with --set"
        )
    if batch_size < learner.least_batch:
        raise UsageError(
            f"train.batch_size={batch_size}: {request.learner} needs at least {learner.least_batch} at a time"
        )
    learner.require(dataset.card.arrays)
    require_rewards(dataset, request.rewards)
    changed = _changed(learner_config) | _changed(train_config)
    run_id = _run_id(dataset.card.id, request, changed)
    folder = request.out or runs_folder() / run_id
    record = {
        "id": run_id,
        "status": "running",
        "command": request.command,
        "dataset": {
            "id": dataset.card.id,
            "path": str(dataset.folder.resolve()),
            "sha256": dataset.card.sha256,
            "references": dataset.card.references,
            "return_mean": dataset.card.statistics["return"]["mean"],
        },
        "env": spec.model_dump(mode="json"),
        "learner": request.learner,
        "learner_config": _as_json(learner_config),
        "train_config": _as_json(train_config),
        "rewards": request.rewards,
        "rewards_sha256": rewards_digest(dataset, request.rewards),
        "seeds": seeds,
        "device": request.device,
        "versions": {
            "offmarl": offmarl.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "steps": 0,
        "summary": {},
        "error": None,
    }
    run = _existing(folder, record, request, reporter)
    if run is not None and run.status == "complete":
        return run
    if run is not None and run.checkpoint_path.exists():
        _require_fitting(run, learner)
    with reporter.bar("check the data") as progress:
        require_valid(dataset, progress)
    data: Transitions | Units
    with reporter.bar("load"):
        rewards = rewards_for(dataset, request.rewards)
        if learner.batch_unit == "units":
            data = load_units(dataset, reward=rewards, device=request.device)
            data.require_batch(batch_size)
        else:
            data = load_transitions(dataset).with_reward(rewards).to(request.device)
    with only_one(folder, f"another process is training in {folder}: let it end, or give another --out"):
        if run is None:
            run = RunFolder.create(folder, record, request.overwrite)
        with reporter.bar(f"train {request.learner}") as progress:
            train(learner, data, train_config, run, request.resume, progress, request.along)
    return run


def rewards_digest(dataset: Dataset, rewards: str) -> str | None:
    """What tells a decomposition from another of the same name; None of rewards that the dataset itself holds.

    Raises like `rewards_for`.
    """
    if rewards in BUILT_IN:
        return None
    return hashlib.sha256(rewards_for(dataset, rewards).numpy().tobytes()).hexdigest()


def _existing(
    folder: Path, record: dict[str, Any], request: TrainRequest, reporter: Reporter
) -> RunFolder | None:
    """Find the run to continue, or None to start one; refuses what would lose or mix up results."""
    RunFolder.require_ours(folder)
    if not (folder / RECORD_NAME).exists() or request.overwrite:
        if request.resume:
            reporter.say("there is no such run to continue: starting it")
        return None
    run = RunFolder.open(folder)
    if not request.resume:
        run.refuse()
    for name in ("learner", "learner_config", "train_config", "rewards", "seeds"):
        then, now = run.record.get(name), record[name]
        if then == now:
            continue
        if isinstance(then, dict):  # what differs is easier to see without the rest
            then, now = _unlike(then, now), _unlike(now, then)
        raise UsageError(
            f"--resume: run {run.id} was started with {name} {then}, not {now}: ask for the same, or replace it with "
            "--overwrite"
        )
    if run.record["dataset"]["sha256"] != record["dataset"]["sha256"]:
        raise UsageError(
            f"--resume: dataset {record['dataset']['id']} has changed since run {run.id} was started"
        )
    if run.record.get("rewards_sha256", record["rewards_sha256"]) != record["rewards_sha256"]:
        raise UsageError(
            f"--resume: rewards {record['rewards']} have changed since run {run.id} was started: --overwrite trains "
            "on those of now"
        )
    if run.status == "complete":
        reporter.say(f"run {run.id} is already complete; --overwrite replaces it")
    return run


def _unlike(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Keep the settings that `others` lack or have otherwise."""
    return {key: value for key, value in settings.items() if key not in others or others[key] != value}


def _require_fitting(run: RunFolder, learner: Learner) -> None:
    """Raise `DataError` for a checkpoint that is not this learner's, before any data is read."""
    saved = Checkpoint.load(run.checkpoint_path)
    try:
        learner.check_state(saved.learner)
    except DataError as error:
        raise DataError(f"--resume: {run.checkpoint_path}: {error}") from error


def _run_id(dataset_id: str, request: TrainRequest, changed: dict[str, Any]) -> str:
    """`<dataset>/<learner>-<rewards>-s<seeds>`, and eight letters where settings are not the defaults."""
    rewards = request.rewards
    if not re.fullmatch(
        r"[A-Za-z0-9_-]+", rewards
    ):  # a file: its name is for people, the letters tell it apart
        changed = changed | {"rewards": rewards}
        rewards = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(rewards).stem) or "file"
    learner = request.learner.replace(":", "-")
    run_id = f"{dataset_id}/{learner}-{rewards}-s{seeds_text(request.seeds)}"
    if changed:
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        run_id += f"-{digest[:8]}"
    return run_id


def _changed(config: Any) -> dict[str, Any]:
    return {f"{type(config).__name__}.{name}": value for name, value in departures(config).items()}


def _as_json(config: Any) -> dict[str, Any]:
    """Write a config as JSON gives it back (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
