"""The stages as a benchmark's jobs: each makes one thing of a cell, in whatever process it is run.

Data and credit are made once and read by every cell that shares them; measurements are plain numbers, a list of
them for each metric: one value a trained seed, a single one where nothing is trained.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from offmarl.behaviour.collection import CollectRequest, collect_dataset
from offmarl.behaviour.qualities import QUALITIES
from offmarl.behaviour.tuning import behaviour_config
from offmarl.behaviour.wrappers import check_free_riders
from offmarl.credit.base import Credit
from offmarl.credit.inputs import NOBODY, input_layout
from offmarl.credit.registry import decomposer_class
from offmarl.credit.relabel import CreditReport, decompose
from offmarl.data.catalog import find_dataset
from offmarl.envs.base import EnvSpec
from offmarl.envs.registry import make
from offmarl.errors import unknown_name
from offmarl.evaluation.ope.config import OpeConfig
from offmarl.evaluation.ope.estimators import check_names
from offmarl.evaluation.ope.offline import OfflineEvaluation, estimated_values, evaluate_runs_offline
from offmarl.evaluation.scores import evaluate_run, normalised_score
from offmarl.learners.registry import learner_class, task_kind
from offmarl.recipes import games
from offmarl.recipes.recipe import CellSettings, CollectStage, DecomposeStage, OpeStage, TrainStage
from offmarl.reporter import Silent
from offmarl.settings import configure
from offmarl.training.loop import TrainConfig
from offmarl.training.offline import TrainRequest, train_offline
from offmarl.training.run import RECORD_NAME, RunFolder

CREDIT = "credit"  # name of the file inside a decomposition's folder


@dataclass(frozen=True)
class Measurement:
    """What a cell has found out."""

    values: dict[str, list[float]]  # metric -> one value a trained seed
    details: dict[str, Any]  # what a table does not show


def check(settings: CellSettings) -> None:
    """Raise `UsageError` for a name or a setting that does not exist, before hours are spent on the others."""
    spec = None
    if settings.play is not None:
        games.check(settings)
    if settings.collect is not None:
        stage = settings.collect
        if stage.quality not in QUALITIES:
            raise unknown_name("quality", stage.quality, QUALITIES)
        if stage.backend == "offmarl":  # others start simulators: they speak up when their turn comes
            spec = _spec(stage.env, json.dumps(stage.options, sort_keys=True))
            if stage.free_riders:
                check_free_riders(stage.free_riders, spec)
            behaviour_config(spec, stage.behaviour).check()
    if settings.decompose is not None:
        method = decomposer_class(settings.decompose.method)
        configure(method.config_class, settings.decompose.settings, "credit")
    if settings.train is not None:
        kind = "continuous" if spec is None else task_kind(spec)
        learner = learner_class(settings.train.learner, kind)
        configure(learner.config_class, settings.train.settings, "learner")
        configure(TrainConfig, settings.train.loop, "train").check()
    if settings.evaluate is not None and settings.evaluate.ope is not None:
        configure(OpeConfig, settings.evaluate.ope.settings, "ope")
        if settings.evaluate.ope.estimators is not None:
            check_names(settings.evaluate.ope.estimators)


@cache
def _spec(env: str, options: str) -> EnvSpec:
    with make(env, 1, options=json.loads(options)) as environment:
        return environment.spec


def collect(stage: CollectStage, folder: Path) -> None:
    """Make the data of `stage` in `folder`; an interrupted collection goes on."""
    assert stage.seed is not None
    if folder.exists():
        return
    request = CollectRequest(
        env=stage.env,
        quality=stage.quality,
        transitions=stage.steps,
        num_envs=stage.num_envs,
        free_riders=stage.free_riders,
        backend=stage.backend,
        seed=stage.seed,
        out=folder,
        env_options=stage.options,
        behaviour=stage.behaviour,
        command="offmarl bench",
    )
    collect_dataset(request, Silent())


def make_credit(source: Path | str, stage: DecomposeStage, folder: Path, device: str) -> None:
    """Decompose the dataset `source` into `folder`."""
    assert stage.seed is not None
    if (folder / f"{CREDIT}.h5").exists():
        return
    with find_dataset(source) as dataset:
        decompose(dataset, stage.method, stage.settings, stage.seed, CREDIT, folder, device=device)


def measure(
    source: Path | str, settings: CellSettings, credit: Path | None, scratch: Path, device: str
) -> Measurement:
    """Do what is left of a cell once its data and its credit are there.

    `scratch` is a folder for files that nobody needs afterwards.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        if settings.train is None:
            return _measure_credit(source, settings, scratch, device)
        return _measure_policies(source, settings, credit, scratch, device)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _measure_credit(source: Path | str, settings: CellSettings, scratch: Path, device: str) -> Measurement:
    """How well a decomposition of the data agrees with the truth, and what it says of itself."""
    stage = settings.decompose
    assert stage is not None
    assert stage.seed is not None
    before = time.process_time()
    with find_dataset(source) as dataset:
        report = decompose(dataset, stage.method, stage.settings, stage.seed, CREDIT, scratch, device=device)
        transitions, spec = dataset.card.transitions, dataset.spec
    found: dict[str, float | None] = {
        **report.credit.metrics,
        **_doubts(report),
        **edges(report.credit, spec, report.config.get("owner")),
        **(report.truth or {}),
        "fallback": float(report.credit.fallback),
        "seconds": report.seconds,
        "cpu_seconds": time.process_time() - before,
    }
    if report.credit.equal:
        found["hijack"] = None  # in an equal split nobody is paid for another's
    answer = report.to_json()
    return Measurement(
        values={
            name: [float(value)]
            for name, value in found.items()
            if value is not None and math.isfinite(value)
        },
        details={"transitions": transitions, "agents": answer["agents"], "reason": answer["reason"]},
    )


def _doubts(report: CreditReport) -> dict[str, float | None]:
    """The agents' ambiguity and reproducibility, each by its mean and its worst."""
    ambiguity = [agent.ambiguity for agent in report.credit.agents if agent.ambiguity is not None]
    kappa = [agent.reproducibility for agent in report.credit.agents if agent.reproducibility is not None]
    return {
        "ambiguity": sum(ambiguity) / len(ambiguity) if ambiguity else None,
        "ambiguity_least": min(ambiguity, default=None),
        "ambiguity_most": max(ambiguity, default=None),
        "reproducibility": sum(kappa) / len(kappa) if kappa else None,
        "reproducibility_least": min(kappa, default=None),
    }


def edges(credit: Credit, spec: EnvSpec, owner: Mapping[str, str] | None = None) -> dict[str, float | None]:
    """Share of the true causes that the masks keep, and how many edges lead wrongly to another agent's variables.

    `owner` is the map that was given instead of the task's, see `input_layout`.
    """
    if credit.masks is None:
        return {}
    layout = input_layout(spec, owner)
    owned_by = dict(zip(layout.names, layout.owner.tolist(), strict=True))
    found = {(agent, credit.input_names[column]) for agent, column in credit.masks.nonzero().tolist()}
    causes = {(agent, name) for agent, names in enumerate(spec.causes or ()) for name in names}
    foreign = {(agent, name) for agent, name in found - causes if owned_by[name] not in (agent, NOBODY)}
    return {
        "edges": float(len(found)),
        "recall": len(found & causes) / len(causes) if causes else None,
        "foreign_edges": float(len(foreign)),
    }


def train(source: Path | str, stage: TrainStage, credit: Path | None, folder: Path, device: str) -> RunFolder:
    """Train on the dataset `source`, on rewards that are built in or lie in `credit`."""
    assert stage.seed is not None
    request = TrainRequest(
        learner=stage.learner,
        rewards=stage.rewards if credit is None else str(credit / f"{CREDIT}.h5"),
        seeds=tuple(range(stage.seed, stage.seed + stage.seeds)),
        learner_settings=stage.settings,
        train_settings={"tensorboard": False, **stage.loop},
        out=folder,
        overwrite=folder.exists(),
        device=device,
        command="offmarl bench",
    )
    with find_dataset(source) as dataset:
        return train_offline(dataset, request)


def train_player(
    source: Path | str, stage: TrainStage, credit: Path | None, folder: Path, device: str
) -> None:
    """Train somebody who plays in several cells."""
    if not (folder / RECORD_NAME).exists() or RunFolder.open(folder).status != "complete":
        train(source, stage, credit, folder, device)


def measure_games(
    settings: CellSettings, source: Path | str | None, run: Path | None, opponent: Path | None, device: str
) -> Measurement:
    """Let a contestant play: the policies of `run`, trained on `source`; without these, those that learnt online.

    Without the run `opponent` it is found by what the cell calls it.
    """
    if source is None or run is None:
        return Measurement(*games.measure_online(settings, device))
    return Measurement(*games.measure_trained(settings, RunFolder.open(run), opponent, source, device))


def _measure_policies(
    source: Path | str, settings: CellSettings, credit: Path | None, scratch: Path, device: str
) -> Measurement:
    """Scores of policies trained on the rewards that the cell names."""
    stage, play = settings.train, settings.evaluate
    assert stage is not None
    assert play is not None
    assert play.seed is not None
    started, before = time.perf_counter(), time.process_time()
    run = train(source, stage, credit, scratch, device)
    scores = evaluate_run(run, play.episodes, play.seed, play.options, device, Silent())
    normalised = [normalised_score(value, scores.references) for value in scores.per_seed]
    values = {
        "score": [value for value in normalised if value is not None],
        "return": list(scores.per_seed),
        "seconds": [time.perf_counter() - started],
        "cpu_seconds": [time.process_time() - before],
    }
    if scores.win_rate is not None:
        values["win_rate"] = list(scores.win_rate)
    if scores.behaviour_normalised is not None:
        values["behaviour"] = [scores.behaviour_normalised]
    for name, value in (scores.agreement or {}).items():
        if value is not None:
            values[f"rewards_{name}"] = [value]  # agreement of the rewards trained on with the truth
    details = {
        "agent_return": scores.agent_return,
        "references": scores.references,
        "episodes": scores.episodes,
        "metrics": run.summary,
    }
    if play.ope is not None:
        offline = _estimated(run, play.ope, device)
        values |= estimated_values(offline)
        details["ope"] = offline.to_json()
    return Measurement({name: numbers for name, numbers in values.items() if numbers}, details)


def _estimated(run: RunFolder, stage: OpeStage, device: str) -> OfflineEvaluation:
    """What the data alone say of a run."""
    config = configure(OpeConfig, stage.settings, "ope")
    report = evaluate_runs_offline([run], stage.estimators, config, stage.seed, None, device, Silent())
    return report.evaluations[0]
