"""Runs as candidates: what their data say of them, and what they truly earn where somebody has played them."""

import json
from collections.abc import Sequence

from offmarl.errors import UsageError
from offmarl.evaluation.ope.offline import OfflineReport
from offmarl.evaluation.ope.ranking import Candidate
from offmarl.evaluation.scores import runs_to_evaluate
from offmarl.training.run import RunFolder, find_run

PLAYED = "evaluation.json"  # what `offmarl evaluate` leaves in a run's folder


def runs_to_select(names: Sequence[str], dataset: str | None) -> list[RunFolder]:
    """The runs named, or every complete run on `dataset`, or on the dataset of the latest run.

    Raises `UsageError` where they were trained on different data, or there is none.
    """
    if not names:
        latest = dataset or str(find_run(None).record["dataset"]["path"])
        return runs_to_evaluate([], latest)
    runs = runs_to_evaluate(names, None)
    for run in runs:
        if run.record["dataset"]["sha256"] != runs[0].record["dataset"]["sha256"]:
            raise UsageError(
                f"runs {runs[0].id} and {run.id} were trained on different datasets: estimates of different data "
                "cannot be ranked; name runs on one, or give --dataset"
            )
    return runs


def candidates(runs: Sequence[RunFolder], report: OfflineReport) -> list[Candidate]:
    """The runs of a report, named by their ids below the dataset's."""
    return [
        Candidate(
            name=run.id.removeprefix(f"{said.dataset}/"),
            data=said.dataset,
            estimates={name: estimate.value for name, estimate in said.estimates.items()},
            true_return=_played(run),
        )
        for run, said in zip(runs, report.evaluations, strict=True)
    ]


def _played(run: RunFolder) -> float | None:
    """The return of the run's last checkpoint, mean over seeds, where `offmarl evaluate` measured it."""
    try:
        scores = json.loads((run.folder / PLAYED).read_text(encoding="utf-8"))
        if scores["steps"] != run.record["steps"]:
            return None
        return float(sum(scores["per_seed"]) / len(scores["per_seed"]))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
