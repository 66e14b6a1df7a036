"""Figures for papers and READMEs, drawn with matplotlib."""

from pathlib import Path

from offmarl.evaluation.scores import Evaluation, EvaluationReport
from offmarl.report.style import BLACK, COLOURS, INK, colours_for, save


def draw_scores(report: EvaluationReport, path: Path) -> None:
    """Draw one bar a run with its interval, grouped by learner, beside what the behaviour itself scores if it is one.

    Normalised scores where all runs have them, else returns. The format follows the suffix of `path`.
    """
    from matplotlib.figure import Figure

    evaluations = report.evaluations
    normalised = all(evaluation.normalised is not None for evaluation in evaluations)
    learners = list(dict.fromkeys(evaluation.learner for evaluation in evaluations))
    learners.sort(key=lambda learner: (learner != "bc", learner))
    rewards = sorted({evaluation.rewards for evaluation in evaluations}, key=_order)
    colours = colours_for(rewards)

    figure = Figure(figsize=(1.6 + 1.9 * len(learners), 3.4), layout="constrained")
    axes = figure.add_subplot()
    labelled: set[str] = set()
    ticks = []
    left = 0.0
    for learner in learners:
        runs = sorted(
            (run for run in evaluations if run.learner == learner), key=lambda run: _order(run.rewards)
        )
        ticks.append(left + (len(runs) - 1) / 2)
        for run in runs:
            height, below, above = _bar(run, normalised)
            imitation = learner == "bc"  # does not look at rewards
            label = None if imitation or run.rewards in labelled else f"{run.rewards} rewards"
            colour = INK if imitation else colours[run.rewards]
            axes.bar(
                left,
                height,
                0.9,
                color=colour,
                label=label,
                yerr=[[below], [above]],
                capsize=3,
                ecolor=BLACK,
            )
            if not imitation:
                labelled.add(run.rewards)
            left += 1
        left += 0.8
    logged = {run.behaviour_normalised if normalised else run.behaviour_return for run in evaluations}
    behaviour = logged.pop() if len(logged) == 1 else None  # runs on other data are beside another team
    if behaviour is not None:
        axes.axhline(behaviour, color=INK, linestyle="--", linewidth=1, label="the logged team itself")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(ticks, [learner.upper() for learner in learners])
    axes.set_ylabel("normalised score" if normalised else "return, mean over agents")
    axes.set_title(report.title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)


def _bar(run: Evaluation, normalised: bool) -> tuple[float, float, float]:
    """Height of a bar, and how far its interval reaches down and up."""
    value = run.normalised if normalised else run.interval.mean
    assert value is not None
    bounds = run.normalised_interval if normalised else (run.interval.low, run.interval.high)
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return value, 0.0, 0.0
    return value, max(value - bounds[0], 0.0), max(bounds[1] - value, 0.0)


def _order(rewards: str) -> tuple[int, str]:
    known = list(COLOURS)
    return (known.index(rewards) if rewards in known else len(known), rewards)
