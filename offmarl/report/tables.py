"""Tables for the terminal: a decomposition in words and numbers."""

from offmarl.credit.relabel import CreditReport

MOST_NAMES = 6  # causes spelled out in a cell


def credit_columns() -> list[str]:
    """Header of `credit_rows`."""
    return ["agent", "verdict", "ambiguity", "reproducibility", "is paid for"]


def credit_rows(report: CreditReport) -> list[list[str]]:
    """One row an agent: what is known about its share, and what it depends on."""
    credit = report.credit
    rows = []
    for index, agent in enumerate(credit.agents):
        names: list[str] = []
        if credit.masks is not None and not credit.fallback:
            columns = credit.masks[index].nonzero().flatten().tolist()
            names = [_own(credit.input_names[column], agent.name) for column in columns]
        shown = ", ".join(names[:MOST_NAMES]) + (
            f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else ""
        )
        rows.append(
            [
                agent.name,
                agent.verdict,
                _number(agent.ambiguity),
                _number(agent.reproducibility),
                shown or "-",
            ]
        )
    return rows


def credit_lines(report: CreditReport) -> list[str]:
    """The fit, the agreement with the truth where it is known, doubts, and what was done about them."""
    credit, lines = report.credit, []
    fit = credit.metrics.get("fit_r2")
    if fit is not None:
        lines.append(f"held-out R² of the sum of the agents' rewards: {fit:.3f}")
    if report.truth is not None:
        known = ", ".join(f"{name} {value:.3f}" for name, value in report.truth.items() if value is not None)
        lines.append(f"agreement with the true rewards (never used to fit): {known}")
    if credit.reason:
        lines.append(f"{'every agent gets R/N: ' if credit.fallback else ''}{credit.reason}")
    lines.append(f"wrote {report.path} in {report.seconds:.0f} s")
    return lines


def _own(name: str, agent: str) -> str:
    """The name as the agent itself would say it: `next.agent_0.velocity_x` of agent_0 is `next.velocity_x`."""
    after = name.removeprefix("next.")
    return name.removesuffix(after) + after.removeprefix(f"{agent}.")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
