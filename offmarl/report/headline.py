"""What came out, in words: which method won, by how much, and how sure that is."""

from collections.abc import Callable, Sequence

from offmarl.evaluation.statistics import Estimate, fixed
from offmarl.report.study import IMITATION, TRUTH, Result, Study
from offmarl.report.summary import FEW_SEEDS, Improvement, Summary, compare

REWARDS = {"team": "the team reward", "mean": "the team reward in equal parts", TRUTH: "the true rewards"}
MOST_TASKS = 3  # with sentences of their own
Pairing = Callable[[str, str], Improvement]


def headline(summary: Summary) -> str:
    """One to three sentences: the winner against the team reward, its strongest rival and the truth.

    Rewards that only a simulator knows do not win; they say what was within reach. Where tasks cannot be
    averaged every task has its own sentences, as long as they are few.
    """
    study = summary.study
    if study.metric.best is None:
        return f"No method is named the best: whether more or less of {study.metric.title} is better is not known."
    if summary.compared:
        ranked = [(aggregate.method, aggregate.iqm) for aggregate in summary.aggregates]
        return _told(study, ranked, summary.compared, summary.against)
    if len(study.tasks) > MOST_TASKS:
        return (
            f"No method won: what was measured on the {len(study.tasks)} tasks cannot be averaged over them."
        )
    parts = []
    for task, lines in summary.lines.items():
        ranked = [(line.result.method, line.iqm) for line in lines]

        def pairing(first: str, second: str, task: str = task) -> Improvement:
            return compare(study, first, second, [task])

        parts.append(f"{task}: {_told(study, ranked, [task], pairing)}")
    return " ".join(parts)


def _told(
    study: Study, ranked: Sequence[tuple[str, Estimate]], tasks: Sequence[str], pairing: Pairing
) -> str:
    """The sentences for methods `ranked` best first on `tasks`."""
    of = {method: result for method, _ in ranked if (result := study.find(method, tasks[0]))}
    estimates = dict(ranked)
    contenders = [method for method in of if of[method].rewards != TRUTH] or list(of)
    winner = contenders[0]
    rivals = [method for method in contenders if of[method].family != of[winner].family]
    if not rivals:
        reached = _value(study, estimates[winner], _counted(study, [winner], tasks))
        other = "" if contenders[1:] else "; there is nothing to compare it with"
        return f"{_capital(_full(of[winner]))} reaches {reached}{other}.{_within_reach(study, winner, of, estimates)}"
    team = next((method for method in rivals if _is_team(of[method], of[winner])), None)
    shown = list(dict.fromkeys([rivals[0] if team is None else team, rivals[0]]))
    sentences = [_sentence(study, of[winner], of[rival], pairing(winner, rival), tasks) for rival in shown]
    return " ".join(sentences) + _within_reach(study, winner, of, estimates)


def _sentence(study: Study, winner: Result, rival: Result, pair: Improvement, tasks: Sequence[str]) -> str:
    """`winner` against `rival`, no surer than the numbers are."""
    digits, gap = study.metric.digits, pair.advantage
    counted = _counted(study, [winner.method, rival.method], tasks)
    if _has_variants(study, winner) or _has_variants(study, rival):
        counted += ", each at its best setting"
    first, second, plural = _names(winner, rival)
    less = ", where less is better" if study.metric.best == "smallest" else ""
    first, by = _capital(first), f"{fixed(gap.value, digits)} {study.metric.unit}{less}"
    ahead = f"{first} {'are' if plural else 'is'} ahead of {second} by {by}"
    if gap.low is None or gap.high is None:
        return f"{ahead}, but how sure that is cannot be known ({counted})."
    interval = f"95 % interval {fixed(gap.low, digits)} to {fixed(gap.high, digits)}, {counted}"
    if gap.low <= 0:
        return f"{first} and {second} cannot be told apart: they differ by {by} ({interval})."
    if min(_seeds(study, method, tasks) for method in (winner.method, rival.method)) < FEW_SEEDS:
        return f"{ahead} ({interval}); so few seeds leave it unsure."
    return f"{first} beat{'' if plural else 's'} {second} by {by} ({interval})."


def _has_variants(study: Study, result: Result) -> bool:
    return any(o.family == result.family and o.method != result.method for o in study.results)


def _within_reach(study: Study, winner: str, of: dict[str, Result], estimates: dict[str, Estimate]) -> str:
    """What the true rewards reach, with the winner's learner."""
    if of[winner].rewards == TRUTH:
        return ""
    bound = next(
        (m for m in estimates if of[m].rewards == TRUTH and of[m].learner == of[winner].learner), None
    )
    if bound is None:
        return ""
    digits = study.metric.digits
    return (
        f" The true rewards, which only a simulator knows, reach {fixed(estimates[bound].value, digits)}"
        f"; {_full(of[winner])} {fixed(estimates[winner].value, digits)}."
    )


def _names(winner: Result, rival: Result) -> tuple[str, str, bool]:
    """What differs between two methods, in words, and whether the first is more than one thing."""
    same_learner = winner.learner == rival.learner
    if same_learner and winner.rewards is not None and rival.rewards is not None:
        return (
            _rewards(winner.rewards),
            f"{_rewards(rival.rewards)} ({winner.learner})",
            _plural(winner.rewards),
        )
    return _full(winner), _full(rival), False


def _full(result: Result) -> str:
    """A learner and what it learned from."""
    if result.rewards is None or result.learner == IMITATION:
        return result.learner
    return f"{result.learner} on {_rewards(result.rewards)}"


def _rewards(name: str) -> str:
    return REWARDS.get(name, f"{name}'s rewards")


def _plural(name: str) -> bool:
    return name not in ("team", "mean")


def _is_team(one: Result, winner: Result) -> bool:
    return one.rewards == "team" and one.learner == winner.learner and winner.learner != IMITATION


def _value(study: Study, estimate: Estimate, counted: str) -> str:
    digits = study.metric.digits
    text = f"a {study.metric.title} of {fixed(estimate.value, digits)}"
    if estimate.low is None or estimate.high is None:
        return f"{text} ({counted})"
    return (
        f"{text} (95 % interval {fixed(estimate.low, digits)} to {fixed(estimate.high, digits)}, {counted})"
    )


def _seeds(study: Study, method: str, tasks: Sequence[str]) -> int:
    return min(len(values) for values in study.strata(method, tasks))


def _counted(study: Study, methods: Sequence[str], tasks: Sequence[str]) -> str:
    """`5 seeds, 1 task`: of the method that has fewest."""
    seeds = min(_seeds(study, method, tasks) for method in methods)
    return f"{seeds} seed{'s' if seeds > 1 else ''}, {len(tasks)} task{'s' if len(tasks) > 1 else ''}"


def _capital(text: str) -> str:
    """A sentence begins with a capital; names of learners stay as they are typed."""
    return text[:1].upper() + text[1:] if text.startswith("the ") else text
