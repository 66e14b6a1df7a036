from dataclasses import replace

import torch

from offmarl.credit.base import AgentVerdict
from offmarl.credit.compare import compare
from offmarl.report.tables import (
    comparison_columns,
    comparison_lines,
    comparison_rows,
    credit_columns,
    credit_lines,
    credit_rows,
    own_name,
    pairwise,
)


def told(report, **changes):
    """The report about other findings."""
    return replace(report, credit=replace(report.credit, **changes))


def test_causes_stand_with_their_probability_the_surest_first(report):
    credit = report.credit
    masks, probability = torch.zeros_like(credit.masks), torch.zeros_like(credit.edge_probability)
    first, second, doubtful = (credit.input_names.index(f"agent_0.{name}") for name in ("x0", "x1", "x2"))
    masks[0, first] = masks[0, second] = True
    probability[0, first], probability[0, second], probability[0, doubtful] = 0.6, 1.0, 0.3
    shown = told(report, masks=masks, edge_probability=probability, shared_parents=None)
    rows = credit_rows(shown)
    assert rows[0][-1] == "x1 1.00, x0 0.60"
    assert rows[1][-1] == "-"
    assert all(len(row) == len(credit_columns()) for row in rows)
    edges = shown.to_json()["edges"]["agent_0"]
    assert [(edge["variable"], edge["kept"]) for edge in edges] == [
        ("agent_0.x1", True),
        ("agent_0.x0", True),
        ("agent_0.x2", False),
    ]
    assert credit_rows(told(report, masks=masks, fallback=True))[0][-1] == "-"


def test_what_all_agents_may_be_paid_for_is_said_of_each(report):
    credit = report.credit
    masks, shared = torch.zeros_like(credit.masks), torch.zeros(len(credit.input_names), dtype=torch.bool)
    parent = credit.input_names.index("global.x0")
    masks[0, parent] = shared[parent] = True
    probability = masks.double() * 0.9 + 0.01
    shown = told(report, masks=masks, edge_probability=probability, shared_parents=shared)
    assert [row[-1] for row in credit_rows(shown)[:2]] == ["global.x0 0.91", "global.x0 0.01 (shared)"]
    assert any(line.startswith("shared: nobody's variables") for line in credit_lines(shown))
    assert not any(line.startswith("shared: ") for line in credit_lines(told(report, shared_parents=None)))


def test_verdicts_and_doubts_are_in_words(report):
    agents = [AgentVerdict(name, "identified", 0.123, 0.99) for name in ("a", "b", "c")]
    row = credit_rows(told(report, agents=agents))[0]
    assert row[:4] == ["a", "identified", "0.12", "0.99"]
    spread = float(report.credit.std[report.credit.heldout_rows, 0].double().square().mean().sqrt())
    assert row[5] == f"{spread:.2g}"
    lines = credit_lines(
        told(report, reason="too few", metrics={"fit_r2": 0.5, "odd_one": 2.0, "none": None})
    )
    assert "held-out R² of the sum of the agents' rewards: 0.500" in lines
    assert "odd_one: 2" in lines
    assert "careful: too few" in lines
    assert not any(line.startswith("none") for line in lines)
    fallen = credit_lines(told(report, reason="too few", fallback=True))
    assert "every agent gets R/N: too few" in fallen


def test_what_was_measured_is_in_words(report):
    metrics = report.credit.metrics | {"locality": 0.876}
    lines = "\n".join(credit_lines(told(report, metrics=metrics)))
    assert f"expected skill {metrics['expected_skill']:.2f}" in lines
    assert "locality 0.88" in lines
    assert f"coverage: {metrics['episodes']:.0f} episodes" in lines
    assert not any(name in lines for name in ("fit_r2", "std_median", "varying:")), "no raw keys"


def test_names_are_what_the_agent_itself_would_say():
    assert own_name("next.agent_1.velocity_x", "agent_1") == "next.velocity_x"
    assert own_name("agent_1.velocity_x", "agent_0") == "agent_1.velocity_x"


def test_a_comparison_leaves_out_what_says_nothing(dataset, report):
    comparison = compare(dataset, ["team", "mean", report.path.as_posix()])
    assert all(len(row) == len(comparison_columns(comparison)) for row in comparison_rows(comparison))
    columns, rows = pairwise(comparison, comparison.common_edges)
    assert columns == ["", str(report.path)]
    assert rows == [[str(report.path), "1.00"]]
    columns, rows = pairwise(comparison, comparison.correlation)
    assert len(columns) == 4
    assert len(rows) == 3
    best = comparison.contenders[0].name
    assert any(
        line.startswith(f"nearest to the true rewards: {best} ") for line in comparison_lines(comparison)
    )
