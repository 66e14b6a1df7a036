"""How much of what policies would do lies within the data: where it does not, nobody knows what it is worth.

Shapes: S policies, N agents, M decisions looked at, P decisions of the data that they are compared with, A action
dimensions.
"""

import torch
from torch import Tensor

from offmarl.evaluation.ope.logged import Logged
from offmarl.streams import stream

LOOKED_AT, COMPARED_WITH = 256, 4_096  # decisions of each agent
NEIGHBOURS = 10  # nearest observations of the same agent
USUAL = 0.95  # share of the data's own continuous actions that count as covered by their neighbours


@torch.no_grad()
def coverage(logged: Logged, seed: int = 0) -> Tensor:
    """[S]: the share of decisions for which the data holds a like action where an agent saw much the same.

    Much the same: the own row, and the ten nearest of the agent's observations in a sample of the data. A choice is
    covered if it was made there; a continuous action if it lies no farther from the nearest action there than 95 %
    of the data's own actions lie from those of their neighbours.
    """
    transitions = logged.transitions
    generator = stream(seed, "ope", "coverage")
    rows = transitions.transition_rows
    drawn = rows[torch.randperm(len(rows), generator=generator)[: LOOKED_AT + COMPARED_WITH].to(rows.device)]
    looked, others = drawn[: min(LOOKED_AT, len(drawn) // 2)], drawn[min(LOOKED_AT, len(drawn) // 2) :]
    std = transitions.statistics().obs_std
    obs = transitions.column("obs") * torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 0.0)
    seen = obs[looked].transpose(0, 1), obs[others].transpose(0, 1)  # [N, M, O], [N, P, O]
    near = torch.cdist(*seen).topk(min(NEIGHBOURS, len(others)), largest=False).indices  # [N, M, neighbours]
    agents = torch.arange(len(near), device=near.device)[:, None, None]
    action = transitions.column("action")
    own, around = action[looked].transpose(0, 1), action[others].transpose(0, 1)[agents, near]  # [N, M, ., A]
    beside = torch.cat([own.unsqueeze(2), around], dim=2)
    chosen = logged.action[:, looked].transpose(1, 2)  # [S, N, M(, A)]
    decides = torch.ones(chosen.shape[1:3], device=chosen.device)
    if "alive" in transitions.columns:
        decides = transitions.column("alive")[looked].T
    if transitions.spec.discrete:
        covered = (chosen.unsqueeze(3) == beside).any(3)
    else:
        usual = (own.unsqueeze(2) - around).norm(dim=3).amin(2).quantile(USUAL)
        covered = (chosen.unsqueeze(3) - beside).norm(dim=4).amin(3) <= usual
    return (covered * decides).sum((1, 2)) / decides.sum().clamp(min=1)
