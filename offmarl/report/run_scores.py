"""The scores of trained runs, as `offmarl evaluate` left them in the runs' folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from offmarl.data.catalog import find_dataset
from offmarl.errors import DataError, UsageError
from offmarl.evaluation.scores import normalised_score
from offmarl.evaluation.statistics import bootstrap_band
from offmarl.report.study import SAME_DATA, Curve, Measured, Study, make_study
from offmarl.stored_json import read_object
from offmarl.training.logging import read_metrics
from offmarl.training.run import RunFolder, find_run, list_runs

SCORES = "evaluation.json"
BOOKKEEPING = (
    "log_every",
    "checkpoint_every",
    "tensorboard",
    "matmul_precision",
    "kernels",
    "q_limit",
)  # decide nothing
ALONG_TRAINING = ("score", "win_rate", "return")  # what `offmarl train --evaluate-every` adds to the metrics


class _Scores(BaseModel):
    """What evaluation.json must say."""

    dataset: str
    env: str
    steps: int
    episodes: int
    per_seed: list[float]
    behaviour_return: float | None
    references: dict[str, float] | None
    win_rate: list[float] | None = None  # where episodes can be won


@dataclass(frozen=True)
class Chosen:
    """The runs to report, and those left out because nobody evaluated them."""

    runs: list[RunFolder]
    skipped: list[str]


def runs_to_report(names: Sequence[str], dataset: str | None) -> Chosen:
    """The runs named, or those on `dataset`, or those on the dataset of the latest run.

    Raises `UsageError` for runs that do not exist and, naming the command to run, where none was evaluated.
    """
    if names and dataset is not None:
        raise UsageError("runs and --dataset: give one of the two")
    if names:
        runs = list({run.folder.resolve(): run for run in map(find_run, names)}.values())
        for run in runs:
            if not (run.folder / SCORES).exists():
                raise UsageError(f"run {run.id} was never evaluated: offmarl evaluate --run {_address(run)}")
        return Chosen(runs, [])
    if dataset is None and list_runs():
        source = list_runs()[-1].record["dataset"]
        wanted, named = source["sha256"], source["id"]
    else:
        card = find_dataset(dataset).card
        wanted, named = card.sha256, card.id
    found = [run for run in list_runs() if run.record["dataset"]["sha256"] == wanted]
    complete = [run for run in found if run.status == "complete"]
    if not complete:
        raise UsageError(f"no complete run on {named}: offmarl train --dataset {named}")
    scored = [run for run in complete if (run.folder / SCORES).exists()]
    if not scored:
        none = "the only run" if len(complete) == 1 else f"none of the {len(complete)} runs"
        was = "was never" if len(complete) == 1 else "was"
        raise UsageError(f"{none} on {named} {was} evaluated: offmarl evaluate --dataset {named}")
    return Chosen(scored, [run.id for run in complete if run not in scored])


def study_of_runs(chosen: Chosen, metric: str | None = None) -> Study:
    """Read the scores and the metrics along training of `chosen`.

    Raises `DataError` for damaged scores, `UsageError` for scores of an earlier checkpoint than the run's last
    and for runs that are the same measurement.
    """
    measured = [_measured(run) for run in chosen.runs]
    datasets = list(dict.fromkeys(run.record["dataset"]["id"] for run in chosen.runs))
    notes = [SAME_DATA]
    if chosen.skipped:
        more = f" and {len(chosen.skipped) - 1} more" if chosen.skipped[1:] else ""
        notes.append(
            f"never evaluated, and so left out: {chosen.skipped[0]}{more}: offmarl evaluate --dataset {datasets[0]}"
        )
    return make_study(", ".join(datasets), measured, metric, notes, lambda named: _curves(chosen.runs, named))


def _address(run: RunFolder) -> str:
    """What finds the run again: its id, or its folder where it lies elsewhere."""
    try:
        return run.id if find_run(run.id).folder.resolve() == run.folder.resolve() else str(run.folder)
    except (UsageError, DataError):
        return str(run.folder)


def _measured(run: RunFolder) -> Measured:
    path = run.folder / SCORES
    try:
        scores = _Scores.model_validate(read_object(path, "evaluated run", "evaluation"))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise DataError(
            f"{path}: field '{where}': {problem['msg']}; write it anew: offmarl evaluate --run {_address(run)}"
        ) from error
    record = run.record
    if scores.steps != record["steps"]:
        raise UsageError(
            f"run {run.id} is at step {record['steps']}, its scores are of step {scores.steps}: "
            f"offmarl evaluate --run {_address(run)}"
        )
    if len(scores.per_seed) != len(record["seeds"]):
        raise DataError(
            f"{path}: {len(scores.per_seed)} values, but run {run.id} has {len(record['seeds'])} seeds; "
            f"write it anew: offmarl evaluate --run {_address(run)}"
        )
    normalised = [normalised_score(value, scores.references) for value in scores.per_seed]
    values: dict[str, list[float]] = {"return": scores.per_seed}
    if scores.win_rate is not None:
        values["win_rate"] = scores.win_rate
    behaviour: dict[str, float] = {}
    if scores.behaviour_return is not None:
        behaviour["return"] = scores.behaviour_return
    known = [value for value in normalised if value is not None]
    if len(known) == len(normalised):
        values["score"] = known
        if scores.behaviour_return is not None:
            logged = normalised_score(scores.behaviour_return, scores.references)
            assert logged is not None
            behaviour["score"] = logged
    training = {
        key: value for key, value in (record.get("train_config") or {}).items() if key not in BOOKKEEPING
    }
    return Measured(
        source=str(run.folder.resolve()),
        env=scores.env,
        task={"": record["dataset"]["id"], "version": record["dataset"]["sha256"][:6]},
        learner=record["learner"],
        rewards=record["rewards"],
        settings={**record["learner_config"], **training},
        values=values,
        seeds=tuple(str(seed) for seed in record["seeds"]),
        episodes=scores.episodes,
        steps=scores.steps,
        behaviour=behaviour,
    )


def _curves(runs: Sequence[RunFolder], named: Mapping[str, tuple[str, str]]) -> list[Curve]:
    """The metrics along training; where policies were evaluated on the way, those scores alone."""
    lines: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
    for run in runs:
        place = named.get(str(run.folder.resolve()))
        if place is not None:
            lines.setdefault(place, []).append(read_metrics(run.metrics_path))
    curves = [curve for place, logs in lines.items() for curve in _curves_of(place, logs)]
    played = [curve for curve in curves if curve.metric in ALONG_TRAINING]
    return played or curves


def _curves_of(place: tuple[str, str], logs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Curve]:
    """One a metric: the seeds of all `logs` side by side, at the steps that all of them have."""
    tables: list[dict[str, dict[int, list[float]]]] = []  # of each log: metric -> step -> values of its seeds
    for log in logs:
        table: dict[str, dict[int, list[float]]] = {}
        for line in log:
            for metric, reading in line.items():
                if metric != "step":
                    table.setdefault(metric, {})[line["step"]] = reading["seeds"]
        tables.append(table)
    curves = []
    for metric in tables[0]:
        if not all(metric in table for table in tables):
            continue
        steps = sorted(set.intersection(*(set(table[metric]) for table in tables)))
        if len(steps) < 2:
            continue
        values = np.array([[v for table in tables for v in table[metric][step]] for step in steps])  # [P, S]
        band = bootstrap_band(values)
        curves.append(
            Curve(
                method=place[0],
                task=place[1],
                metric=metric,
                steps=tuple(steps),
                mean=tuple(values.mean(1).tolist()),
                low=None if band is None else tuple(band[0].tolist()),
                high=None if band is None else tuple(band[1].tolist()),
                values=tuple(map(tuple, values.tolist())),
            )
        )
    return curves
