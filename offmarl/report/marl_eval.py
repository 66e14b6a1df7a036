"""Results for MARL-eval, the aggregation tool of Gorsane et al. 2022 (arXiv 2209.10485), in its JSON.

    {environment: {task: {algorithm: {"run_1": {"step_1": {"step_count": 500, "return": [12.3]}, ...,
                                                "absolute_metrics": {"return": [12.3]}}}}}}

It demands of an environment that every task has the same algorithms, runs and steps, puts names in lower case when
it looks them up, joins them with commas, and takes the last entry of a run for the absolute metrics.
"""

from collections.abc import Sequence
from typing import Any

from offmarl.errors import UsageError
from offmarl.report.study import Curve, Result, Study

METRICS = (
    "return",
    "score",
    "win_rate",
)  # what a policy earns: as it is, normalised, and how often that was a win


def marl_eval_json(study: Study) -> tuple[dict[str, Any], list[str]]:
    """The study as MARL-eval reads it, and what was left out to satisfy it.

    A metric holds one number, the mean over a seed's episodes; the absolute metrics are those of the last
    checkpoint; steps are updates. Raises `UsageError` where no policies were scored.
    """
    if any(result.rewards is None for result in study.results):
        raise UsageError("--marl-eval: MARL-eval compares policies; here decompositions were measured")
    answer: dict[str, Any] = {}
    notes: list[str] = []
    for env in dict.fromkeys(result.env for result in study.results):
        here = [result for result in study.results if result.env == env]
        tasks = list(dict.fromkeys(result.task for result in here))
        methods = _everywhere(here, tasks, env, notes)
        kept = [result for result in here if result.method in methods]
        metrics = [name for name in METRICS if all(result.values.get(name) for result in kept)]
        if not metrics:
            raise UsageError(f"--marl-eval: of {env} none of {', '.join(METRICS)} was measured everywhere")
        runs = min(len(result.seeds) for result in kept)
        if any(len(result.seeds) > runs for result in kept):
            notes.append(
                f"MARL-eval wants as many runs everywhere: of {env} the first {runs} of every method"
            )
        curves = _curves(study, kept, metrics)
        answer[_name(env)] = {
            _name(task.removeprefix(f"{env}/")): {
                _name(result.method): {
                    f"run_{run + 1}": _run(result, run, metrics, curves) for run in range(runs)
                }
                for result in kept
                if result.task == task
            }
            for task in tasks
        }
    return answer, notes


def _everywhere(results: Sequence[Result], tasks: Sequence[str], env: str, notes: list[str]) -> set[str]:
    """The methods that all tasks of an environment have. Raises `UsageError` where there is none."""
    of_task = [{result.method for result in results if result.task == task} for task in tasks]
    shared = set.intersection(*of_task)
    if not shared:
        raise UsageError(f"--marl-eval: no method was measured on all of {', '.join(tasks)}")
    left = sorted(set.union(*of_task) - shared)
    if left:
        notes.append(f"MARL-eval wants every method on every task: of {env} without {', '.join(left)}")
    return shared


def _curves(
    study: Study, results: Sequence[Result], metrics: Sequence[str]
) -> dict[tuple[str, str, str], Curve]:
    """(method, task, metric) -> its curve, if all results were scored along training at the same steps."""
    found = {(c.method, c.task, c.metric): c for c in study.curves if c.metric in metrics}
    wanted = [(result.method, result.task, metric) for result in results for metric in metrics]
    same = all(key in found for key in wanted) and len({found[key].steps for key in wanted}) == 1
    return found if same else {}


def _run(
    result: Result, run: int, metrics: Sequence[str], curves: dict[tuple[str, str, str], Curve]
) -> dict[str, Any]:
    """One seed: its steps in order, and last what its last checkpoint scores."""
    last = {metric: [result.values[metric][run]] for metric in metrics}
    own = {metric: curves.get((result.method, result.task, metric)) for metric in metrics}
    first = own[metrics[0]]
    if first is None:
        return {"step_1": {"step_count": result.steps, **last}, "absolute_metrics": last}
    steps: dict[str, Any] = {}
    for index, count in enumerate(first.steps):
        values = {metric: [curve.values[index][run]] for metric, curve in own.items() if curve is not None}
        steps[f"step_{index + 1}"] = {"step_count": count, **values}
    return {**steps, "absolute_metrics": last}


def _name(text: str) -> str:
    return " ".join(text.lower().replace(",", " ").split())
