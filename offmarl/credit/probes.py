"""Which agents the probes of an ensemble favour, so that every term that two agents could be paid for shows.

Two probes are opposed: what agents on different sides could both be paid for goes to one side in the first probe and
to the other in the second. Agents on one side share it as before, which would look as if it were settled.

Shapes: P pairs of probes, N agents, V variables that vary, n transitions.
"""

import torch
from torch import Tensor

from offmarl.credit.coverage import MOST_ROWS
from offmarl.credit.samples import Samples

COPY = 0.9  # correlation from which two variables tell the same thing
FAVOURED, OPPOSED = 0.1, 2.0  # tie-breaks: what both could be paid for is shared out 20 : 1


def probe_weights(samples: Samples, mask: Tensor) -> Tensor:
    """Tie-breaks of opposed probes for the edges of `mask` [N, V], pair by pair: [2P, N]."""
    favoured = sides(disputes(samples, mask))  # [P, N]
    favoured = torch.stack([favoured, ~favoured], 1).flatten(0, 1)
    return torch.where(favoured, FAVOURED, OPPOSED)


def disputes(samples: Samples, mask: Tensor) -> Tensor:
    """Pairs of agents that look at one variable, or at copies of it, that not everybody looks at: [N, N] bool.

    What everybody looks at is disputed by all, and shows with any two sides.
    """
    inputs = samples.inputs[:: max(1, len(samples.inputs) // MOST_ROWS)]
    alike = torch.corrcoef(inputs.T).reshape(mask.shape[1], -1).abs() > COPY  # [V, V]
    alike |= torch.eye(len(alike), dtype=torch.bool, device=alike.device)
    looks = (mask & ~samples.shared).float() @ alike.float() > 0  # [N, V]
    looks &= ~looks.all(0)
    disputed = looks.float() @ looks.float().T > 0
    return disputed.fill_diagonal_(fill_value=False)


def sides(disputed: Tensor) -> Tensor:
    """Sides for P pairs of probes, so that agents who dispute [N, N] differ in one of them: [P, N] bool.

    Greedy colouring, most constrained agent first (Brélaz 1979, DSATUR), balanced over two colours as long as these
    suffice: one pair of probes then does. The binary digits of a colour are the sides.
    """
    rivals = [set(row.nonzero().flatten().tolist()) for row in disputed]
    colour: dict[int, int] = {}
    size = [0, 0]  # agents of each colour
    while len(colour) < len(rivals):
        taken = {
            agent: {colour[rival] for rival in rivals[agent] if rival in colour}
            for agent in range(len(rivals))
            if agent not in colour
        }
        agent = max(taken, key=lambda agent: (len(taken[agent]), len(rivals[agent]), -agent))
        free = [k for k in range(len(size)) if k not in taken[agent]]
        if not free:
            free = [len(size)]
            size.append(0)
        colour[agent] = min(free, key=lambda k: (size[k], k))
        size[colour[agent]] += 1
    numbers = torch.tensor([colour[agent] for agent in range(len(rivals))], device=disputed.device)
    digits = range((len(size) - 1).bit_length())
    return torch.stack([(numbers >> digit) % 2 == 0 for digit in digits])
