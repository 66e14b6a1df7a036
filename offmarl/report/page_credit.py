"""The part of the page that shows a decomposition: its mask, what is known of every agent, agreement with the truth.

Shapes: R dataset rows, N agents.
"""

from dataclasses import dataclass
from typing import Any

from offmarl.credit.diagnosis import DISPUTED, REPRODUCIBLE, UNPROBED
from offmarl.credit.regression import UNTESTED
from offmarl.credit.relabel import CreditReport, rewards_for
from offmarl.data.store import Dataset
from offmarl.data.table import rows_with_successor
from offmarl.report.charts import Chart, mask_chart, recovered_chart
from offmarl.report.mask_figure import edge_table
from offmarl.report.tables import MOST_NAMES, credit_columns, credit_lines, credit_rows, own_name

MOST_EDGES = 30  # of an agent, told when it is chosen


@dataclass(frozen=True)
class CreditSection:
    """A decomposition as the page shows it."""

    dataset: str  # its id
    name: str
    method: str
    headline: str
    sentences: list[str]  # one an agent
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    mask: Chart | None
    causes_known: bool
    has_shared: bool  # nobody's variables that the rewards of all agents may follow
    recovered: Chart | None
    agents: list[dict[str, Any]]  # what is told of one that is chosen


def credit_section(dataset: Dataset, report: CreditReport) -> CreditSection:
    """Gather what the page says of a decomposition. Raises like `rewards_for`."""
    credit, names = report.credit, dataset.spec.agents
    notes = credit_lines(report)
    mask = recovered = None
    if credit.masks is None:
        notes.append(f"no mask: the method '{report.method}' does not look for causes")
    else:
        edges = edge_table(dataset, report)
        if edges.groups:
            mask = mask_chart(edges, names)
        if edges.left_out:
            notes.append(f"mask: {edges.left_out} variables of low probability are left out")
    if "agent_reward" in dataset.card.arrays:
        rows = credit.heldout_rows
        rows = rows_with_successor(dataset.episode_start) if rows is None else rows
        truth = rewards_for(dataset, "true")[rows].double().numpy()
        recovered = recovered_chart(credit.reward[rows].double().numpy(), truth, names)
    sentences = [_of_agent(report, index) for index in range(len(credit.agents))]
    told: list[dict[str, Any]] = []
    for index, agent in enumerate(credit.agents):
        edges_of = [
            {**edge, "variable": own_name(edge["variable"], agent.name)} for edge in report.edges(index)
        ]
        told.append({"sentence": sentences[index], "edges": edges_of[:MOST_EDGES]})
    return CreditSection(
        dataset=dataset.id,
        name=report.name,
        method=report.method,
        headline=_headline(report),
        sentences=sentences,
        columns=credit_columns(),
        rows=credit_rows(report),
        notes=notes,
        mask=mask,
        causes_known=dataset.spec.causes is not None,
        has_shared=any(edge["shared"] and not edge["kept"] for agent in told for edge in agent["edges"]),
        recovered=recovered,
        agents=told,
    )


def _headline(report: CreditReport) -> str:
    """The decomposition in a sentence."""
    credit, truth = report.credit, report.truth or {}
    verdicts = [agent.verdict for agent in credit.agents]
    if credit.equal:
        said = f"{report.name} gives every agent the same share"
        if credit.reason:
            said += f" ({credit.reason})"
    elif set(verdicts) <= {UNTESTED, UNPROBED}:
        said = (
            f"{report.name} splits the team's reward; whether the data identifies that split was not tested"
        )
    else:
        identified = sum(verdict.startswith("identified") for verdict in verdicts)
        said = (
            f"{report.name} says who earned the team's reward; "
            f"the data identifies the share of {identified} of {len(verdicts)} agents"
        )
    if truth.get("skill") is not None:
        said += f"; skill {truth['skill']:.2f} against the truth (0: as good as equal shares, 1: exact)"
    return f"{said}."


def _of_agent(report: CreditReport, index: int) -> str:
    """What is known of an agent's share, in words and numbers."""
    agent = report.credit.agents[index]
    said = [f"{agent.name}: {agent.verdict}."]
    kept = [edge for edge in report.edges(index) if edge["kept"] or edge["shared"]]
    if kept and not report.credit.fallback:
        names = [own_name(edge["variable"], agent.name) for edge in kept]
        shown = names[:MOST_NAMES] + ([f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else [])
        listed = ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else shown[0]
        said.append(f"Its reward depends on {listed}.")
    if agent.reproducibility is not None:
        partly = "agree in part" if agent.reproducibility >= DISPUTED else "do not agree"
        agree = "agree" if agent.reproducibility >= REPRODUCIBLE else partly
        said.append(f"Refits on resampled episodes {agree} about it ({agent.reproducibility:.2f}).")
    if agent.ambiguity is not None:
        said.append(f"Two equally good answers differ by {agent.ambiguity:.2f} of its standard deviation.")
    spread = report.typical_std()
    if spread is not None:
        said.append(f"Spread of the refits: ±{spread[index]:.2g} a step.")
    return " ".join(said)
