"""Learning curves: policies played now and then while they are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

from offmarl.data.catalog import reference_returns
from offmarl.data.store import Dataset
from offmarl.evaluation.rollout import rollout, task_of
from offmarl.evaluation.scores import normalised_score
from offmarl.learners.base import Learner
from offmarl.training.acting import acting
from offmarl.training.loop import AlongTheWay

EPISODES = 32  # for each seed: as SMAC (Samvelyan et al. 2019) and OG-MARL (Formanek et al. 2023) do


@contextmanager
def returns_along(
    dataset: Dataset, seeds: int, every: int | None, device: str, seed: int = 0
) -> Iterator[AlongTheWay | None]:
    """Have `seeds` policies play the task of `dataset` every so many updates, always from the same states.

    What they earn, `return` (mean over agents), `score` where references are known and `win_rate` where episodes
    can be won, goes into the metrics of the run. It is for curves only: results are those of the last checkpoint.
    Without `every` there is nothing to do.
    """
    if every is None:
        yield None
        return
    spec = dataset.card.env
    references = dataset.card.references or reference_returns(spec)
    with task_of(spec, seeds * EPISODES, device=device) as env:

        def measure(learner: Learner) -> dict[str, list[float]]:
            returns = rollout(env, acting(learner, spec), seed)
            per_seed = returns.mean_agent.view(seeds, EPISODES).mean(1).tolist()
            measured = {"return": per_seed}
            scores = [normalised_score(value, references) for value in per_seed]
            known = [score for score in scores if score is not None]
            if known:
                measured["score"] = known
            if returns.won is not None:
                measured["win_rate"] = returns.won.view(seeds, EPISODES).double().mean(1).tolist()
            return measured

        yield AlongTheWay(every, measure)
