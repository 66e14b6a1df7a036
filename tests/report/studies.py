"""Studies written by hand."""

from typing import Any

from offmarl.report.study import Measured, Study, make_study


def measured(
    learner: str,
    rewards: str | None,
    scores: list[float],
    task: str = "tag/expert-v0",
    settings: dict[str, Any] | None = None,
    first_seed: int = 0,
    **changes: Any,
) -> Measured:
    """What one run has earned: a score a seed, and twice that in returns."""
    fields: dict[str, Any] = {
        "source": f"{task}/{learner}-{rewards}-{first_seed}-{settings}",
        "env": task.split("/")[0],
        "task": {"": task, "version": "abc"},
        "learner": learner,
        "rewards": rewards,
        "settings": settings or {},
        "values": {"score": scores, "return": [2 * score for score in scores]},
        "seeds": tuple(str(first_seed + index) for index in range(len(scores))),
        "episodes": 100,
        "steps": 1_000,
        "behaviour": {"score": 30.0},
    }
    return Measured(**(fields | changes))


def study(*found: Measured, metric: str | None = None) -> Study:
    """All of them together."""
    return make_study("by hand", found, metric)
