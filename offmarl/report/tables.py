"""Tables for the terminal: a decomposition, or several side by side, in words and numbers."""

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from offmarl.credit.compare import Comparison
from offmarl.credit.relabel import CreditReport

MOST_NAMES = 6  # causes spelled out in a cell
TRUTH = ("pearson", "r2", "skill", "hijack", "f1")  # agreement with the truth, in the order shown
METRIC_LINES = (  # of `Credit.metrics`, in words; those without a line are shown by their key
    "held-out R² of the sum of the agents' rewards: {fit_r2:.3f}",
    "expected skill {expected_skill:.2f} (0: as good as R/N, 1: exact), expected error {expected_error:.2g} "
    "(root mean square), sd of the refits {std_median:.2g} (median)",
    "expected skill {probed_skill:.2f} if what several could be paid for is some of theirs only, as a probe has it",
    "locality {locality:.2f} (1: all that is explained depends on agents one by one); of the team reward "
    "{overlooked:.0%} overlooked, {contested:.0%} contested",
    "coverage: {episodes:.0f} episodes fitted, {varying:.0%} of the variables vary, exploration {exploration:.2f} "
    "or more (0: actions follow from what is seen), overlap {overlap:.2f} or less (1: others see the causes too)",
)


def own_name(name: str, agent: str) -> str:
    """The name as the agent itself would say it: `next.agent_0.velocity_x` of agent_0 is `next.velocity_x`."""
    after = name.removeprefix("next.")
    return name.removesuffix(after) + after.removeprefix(f"{agent}.")


def credit_columns() -> list[str]:
    """Header of `credit_rows`."""
    return [
        "agent",
        "verdict",
        "ambiguity",
        "reproducibility",
        "locality",
        "± sd",
        "is paid for (probability of the edge)",
    ]


def credit_rows(report: CreditReport) -> list[list[str]]:
    """One row an agent: what is known about its share, and what it depends on."""
    spread = report.typical_std()
    rows = []
    for index, agent in enumerate(report.credit.agents):
        edges = [] if report.credit.fallback else report.edges(index)
        names = [
            f"{own_name(edge['variable'], agent.name)} {edge['probability']:.2f}{'' if edge['kept'] else ' (shared)'}"
            for edge in edges
            if edge["kept"] or edge["shared"]
        ]
        more = f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else ""
        rows.append(
            [
                agent.name,
                agent.verdict,
                _number(agent.ambiguity),
                _number(agent.reproducibility),
                _number(agent.locality),
                "-" if spread is None else f"{spread[index]:.2g}",
                ", ".join(names[:MOST_NAMES]) + more or "-",
            ]
        )
    return rows


def credit_lines(report: CreditReport) -> list[str]:
    """The fit, what else was measured, the agreement with the truth where it is known, and doubts."""
    credit = report.credit
    lines = _metric_lines(credit.metrics)
    if report.truth is not None:
        known = ", ".join(f"{name} {value:.3f}" for name, value in report.truth.items() if value is not None)
        lines.append(f"agreement with the true rewards (never used to fit): {known}")
    if credit.masks is not None and not credit.fallback:
        agents = range(len(credit.agents))
        if any(
            edge["kept"] and edge["probability"] < 0.5 for agent in agents for edge in report.edges(agent)
        ):
            lines.append("edges of low probability are kept where half of the same role's agents have them")
        if any(edge["shared"] and not edge["kept"] for agent in agents for edge in report.edges(agent)):
            lines.append(
                "shared: nobody's variables on which some agent's reward depends; every agent's may follow them, since "
                "the data does not say whose that part of the reward is"
            )
    if credit.reason:
        lines.append(f"{'every agent gets R/N' if credit.fallback else 'careful'}: {credit.reason}")
    return lines


def _metric_lines(metrics: Mapping[str, float | None]) -> list[str]:
    """What was measured without the truth; undefined values are left out."""
    left = {name: value for name, value in metrics.items() if value is not None}
    lines = []
    for template in METRIC_LINES:
        names = [name for _, name, _, _ in Formatter().parse(template) if name]
        if left.keys() >= set(names):
            lines.append(template.format(**{name: left.pop(name) for name in names}))
    return lines + [f"{name}: {value:.3g}" for name, value in left.items()]


def comparison_columns(comparison: Comparison) -> list[str]:
    """Header of `comparison_rows`."""
    return ["rewards", "method", "fit R²", "falls back", *(TRUTH if comparison.ranked else ())]


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """One row a decomposition, the best first where the truth is known."""
    return [
        [
            contender.name,
            contender.method,
            _number(contender.fit_r2, 3),
            "-" if contender.fallback is None else "yes" if contender.fallback else "no",
            *(_number((contender.truth or {}).get(name), 3) for name in TRUTH if comparison.ranked),
        ]
        for contender in comparison.contenders
    ]


def pairwise(
    comparison: Comparison, matrix: Sequence[Sequence[float | None]]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a pairwise matrix [M, M], without those for whom it says nothing."""
    names = [contender.name for contender in comparison.contenders]
    told = [k for k, row in enumerate(matrix) if any(value is not None for value in row)]
    rows = [[names[k], *(_number(matrix[k][m]) for m in told)] for k in told]
    return ["", *(names[k] for k in told)], rows


def comparison_lines(comparison: Comparison) -> list[str]:
    """On which transitions, and which is the nearest to the truth."""
    seen = (
        "that none of them was fitted on"
        if comparison.heldout
        else "some of which they may have been fitted on: too few were held out of all, or one does not say which"
    )
    lines = [f"measured on {comparison.transitions:,} transitions {seen}"]
    learned = [contender for contender in comparison.contenders if contender.name != "true"]
    if not comparison.ranked:
        lines.append("the true rewards are not known: nothing here says which is right")
    elif (learned[0].truth or {}).get("skill") is None:
        lines.append("skill is undefined where R/N is exact: nothing can be better than the mean")
    else:
        lines.append(
            f"nearest to the true rewards: {learned[0].name} (skill: 0 is as good as R/N, 1 is exact)"
        )
    return lines


def stored_columns() -> list[str]:
    """Header of `stored_row`."""
    return ["name", "method", "fit R²", "falls back", "skill", "seed", "made"]


def stored_row(name: str, about: Mapping[str, Any]) -> list[str]:
    """A credit file as it describes itself."""
    return [
        name,
        about["method"],
        _number(about["fit_r2"], 3),
        "yes" if about["fallback"] else "no",
        _number((about["truth"] or {}).get("skill"), 3),
        str(about["seed"]),
        about["created"][:16].replace("T", " "),
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
