"""Decompositions of one dataset side by side: where they agree, and which is nearest to the truth.

Shapes: M decompositions, R rows, N agents, V variables.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from offmarl.credit.base import Credit
from offmarl.credit.diagnosis import agreement_with_truth
from offmarl.credit.relabel import BUILT_IN, rewards_for, stored_report
from offmarl.credit.samples import varies
from offmarl.data.store import Dataset
from offmarl.data.table import rows_with_successor
from offmarl.errors import UsageError

FEWEST_ROWS = 200  # fewer transitions that nobody was fitted on are too few to compare on


@dataclass(frozen=True)
class Contender:
    """One decomposition among those compared."""

    name: str
    method: str
    fit_r2: float | None  # held-out, of the sum of the agents' rewards
    fallback: bool | None  # None for built-in rewards
    truth: dict[str, float | None] | None  # agreement with the true rewards on the rows compared


@dataclass(frozen=True)
class Comparison:
    """Decompositions in the order of their skill, where the truth is known; else as they were asked for."""

    dataset: str
    contenders: list[Contender]  # M of them
    correlation: list[list[float | None]]  # [M, M] mean over agents; None where nothing varies in common
    common_edges: list[list[float | None]]  # [M, M] F1 of one's edges against the other's; None without edges
    transitions: int  # compared on so many
    heldout: bool  # none of them was fitted on these
    ranked: bool

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dumps`."""
        return asdict(self)


def compare(dataset: Dataset, names: Sequence[str]) -> Comparison:
    """Compare the decompositions `names`: built-in rewards, credits of the dataset, credit files.

    All are judged on the same transitions: those that no decomposition among them was fitted on, or all where
    these are too few. Raises `UsageError` for fewer than two names, or like `rewards_for`.
    """
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise UsageError(
            f"one decomposition ({', '.join(names) or 'none'}) cannot be compared: name two or more"
        )
    reports = [None if name in BUILT_IN else stored_report(dataset, name) for name in names]
    credits = [
        Credit(rewards_for(dataset, name)) if report is None else report.credit
        for name, report in zip(names, reports, strict=True)
    ]
    learned = [
        credit
        for credit, report in zip(credits, reports, strict=True)
        if report is not None and not credit.equal
    ]
    rows, heldout = _common_rows(dataset, learned)
    known = "agent_reward" in dataset.card.arrays
    truth = rewards_for(dataset, "true")[rows] if known else None
    team_reward = dataset.read("team_reward")[rows]
    contenders = []
    for name, report, credit in zip(names, reports, credits, strict=True):
        agreement = None
        if truth is not None:
            agreement = agreement_with_truth(
                credit.reward[rows],
                truth,
                team_reward,
                credit.masks,
                credit.input_names,
                dataset.spec.causes,
                equal=credit.equal,
            )
        contenders.append(
            Contender(
                name=name,
                method="built in" if report is None else report.method,
                fit_r2=credit.metrics.get("fit_r2"),
                fallback=None if report is None else credit.fallback,
                truth=agreement,
            )
        )
    order = sorted(range(len(names)), key=lambda k: _rank(contenders[k]))
    return Comparison(
        dataset=dataset.id,
        contenders=[contenders[k] for k in order],
        correlation=[
            [correlation(credits[k].reward[rows], credits[m].reward[rows]) for m in order] for k in order
        ],
        common_edges=[[common_edges(credits[k].masks, credits[m].masks) for m in order] for k in order],
        transitions=len(rows),
        heldout=heldout,
        ranked=known,
    )


def correlation(first: Tensor, second: Tensor) -> float | None:
    """Mean over agents of the Pearson correlation of two splits [n, N]; None if no agent's varies in both."""
    common = varies(first) & varies(second)  # [N]
    if not common.any():
        return None
    a, b = first[:, common].double(), second[:, common].double()
    a, b = a - a.mean(0), b - b.mean(0)
    spread = a.square().mean(0).sqrt() * b.square().mean(0).sqrt()
    return float(((a * b).mean(0) / spread).mean())


def common_edges(first: Tensor | None, second: Tensor | None) -> float | None:
    """F1 of the edges of one mask [N, V] against another's; None where either does not say."""
    if first is None or second is None or first.shape != second.shape or not bool((first | second).any()):
        return None
    return 2 * int((first & second).sum()) / int(first.sum() + second.sum())


def _common_rows(dataset: Dataset, learned: Sequence[Credit]) -> tuple[Tensor, bool]:
    """The transitions to compare on, and whether they were held out of every fit.

    A decomposition that does not say what it held out may have been fitted on everything.
    """
    transitions = rows_with_successor(dataset.episode_start)
    held_out = [credit.heldout_rows for credit in learned]
    unseen = torch.zeros(dataset.card.rows, dtype=torch.bool)
    unseen[transitions] = True
    fewest = FEWEST_ROWS
    for rows in held_out:
        if rows is None:
            return transitions, False
        of_this = torch.zeros_like(unseen)
        of_this[rows] = True
        unseen &= of_this
        fewest = min(fewest, len(rows))
    if held_out and int(unseen.sum()) < fewest:
        return transitions, False
    return unseen.nonzero().flatten(), True


def _rank(contender: Contender) -> tuple[bool, float]:
    """Best skill first, unknown ones last; equals stay in the order asked for."""
    skill = (contender.truth or {}).get("skill")
    return (skill is None, -(skill or 0.0))
