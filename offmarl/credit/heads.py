"""Reward heads of all agents and all ensemble members as one stacked network, and the loop that fits it.

Shapes: M members, N agents, G groups of samples, B samples (all groups), V variables, K variables that a head
looks at, H hidden units.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTED_AT_ONCE = 160_000  # rewards; bounds the memory of `RewardHeads.predict`


def variables_seen(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The variables of each head of `mask` [N, V] bool, side by side: which ones [N, K], and which count [N, K].

    K is what the head with most variables needs; the others are filled up with variables that do not count.
    """
    widest = max(1, int(mask.sum(1).max()))
    variables = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :widest]
    return variables, mask.gather(1, variables)


class RewardHeads:
    """M x N independent ReLU networks: head (m, i) maps its K gated variables to agent i's reward.

    Every head has its own list of variables, so that cost grows with the edges and not with N x V. Gates are
    multiplied into the first layer's weights instead of into copies of the samples.
    """

    def __init__(
        self,
        variables: Tensor,
        fan_in: Tensor,
        width: int,
        depth: int,
        generator: torch.Generator,
    ) -> None:
        """`variables` [N, K] int64; `fan_in` [M, N] is the number that is open to each head (scales layer 1)."""
        members, agents = fan_in.shape
        self.variables, self.agents = variables, agents
        stack, device = members * agents, variables.device

        def normal(scale: float, *shape: int) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(device)

        first = normal(1.0, members, agents, variables.shape[1], width)
        self.input_weight = first * (2 / fan_in.clamp(min=1)).sqrt()[:, :, None, None]  # [M, N, K, H]
        self.weights = [normal(math.sqrt(2 / width), stack, width, width) for _ in range(depth - 1)]
        self.weights.append(normal(math.sqrt(1 / width), stack, width, 1))  # [M*N, H, 1]
        self.biases = [torch.zeros(stack, 1, width, device=device) for _ in range(depth)]
        self.biases.append(torch.zeros(stack, 1, 1, device=device))
        for parameter in self.parameters:
            parameter.requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        """Every trained tensor."""
        return [self.input_weight, *self.weights, *self.biases]

    def keep(self, place: Tensor) -> None:
        """Go on with those of the K variables that `place` [N, k] names, of each head its own."""
        where = place[None, :, :, None].expand(len(self.input_weight), -1, -1, self.input_weight.shape[3])
        self.input_weight = self.input_weight.detach().gather(2, where).requires_grad_()
        self.variables = self.variables.gather(1, place)

    def only(self, agent: int, members: int) -> "RewardHeads":
        """The first `members` heads of one agent, sharing the weights."""
        chosen = copy(self)
        chosen.agents, chosen.variables = 1, self.variables[agent : agent + 1]
        chosen.input_weight = self.input_weight[:members, agent : agent + 1]
        place = slice(agent, members * self.agents, self.agents)
        chosen.weights = [weight[place] for weight in self.weights]
        chosen.biases = [bias[place] for bias in self.biases]
        return chosen

    def __call__(self, samples: Tensor, gates: Tensor) -> Tensor:
        """Rewards [M, N, B] of `samples` [M or 1, B, V] under `gates` [M, G, N, K]; G divides B."""
        members, groups = gates.shape[:2]
        batch = samples.shape[1]
        seen = samples[:, :, self.variables].unflatten(1, (groups, batch // groups))  # [M or 1, G, B/G, N, K]
        seen = seen.permute(0, 3, 1, 2, 4).expand(members, -1, -1, -1, -1)  # [M, N, G, B/G, K]
        gated = self.input_weight.unsqueeze(2) * gates.transpose(1, 2).unsqueeze(-1)  # [M, N, G, K, H]
        hidden = torch.bmm(seen.flatten(0, 2), gated.flatten(0, 2)).view(members * self.agents, batch, -1)
        hidden = torch.relu(hidden + self.biases[0])  # [M*N, B, H]
        for weight, bias in zip(self.weights[:-1], self.biases[1:-1], strict=True):
            hidden = torch.relu(torch.baddbmm(bias, hidden, weight))
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1]).view(members, self.agents, batch)

    @torch.no_grad()
    def predict(self, samples: Tensor, gates: Tensor) -> Tensor:
        """Rewards [M, N, n] of `samples` [n, V] under fixed `gates` [M, N, K], in chunks."""
        chunk = max(1, PREDICTED_AT_ONCE // (len(gates) * self.agents))
        fixed = gates.unsqueeze(1)
        return torch.cat([self(part.unsqueeze(0), fixed) for part in samples.split(chunk)], 2)


def minimise(
    loss: Callable[[int], Tensor],
    groups: Sequence[tuple[Sequence[Tensor], float]],
    steps: range,
    total: int,
    warm_up: int,
) -> None:
    """Adam on `loss(step)` for `steps` out of `total`; every group of parameters has its learning rate.

    The rate of the first group warms up linearly over `warm_up` steps and then falls along a cosine to 2 % of
    its value; the others (gates) are constant.
    """
    optimiser = torch.optim.Adam([{"params": list(group), "lr": rate} for group, rate in groups], fused=True)
    peak = groups[0][1]
    for step in steps:
        cosine = 0.5 * (1 + math.cos(math.pi * step / total))
        optimiser.param_groups[0]["lr"] = peak * min((step + 1) / warm_up, max(cosine, 0.02))
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()


@dataclass(frozen=True)
class FittedFunctions:
    """Fitted reward functions with the edges they use. Dead agents earn nothing, constants included."""

    heads: RewardHeads
    gates: Tensor  # [M, N, K]
    centre: Tensor | float = 0.0  # [M, N, 1] mean reward while alive: constants are not identifiable
    offset: Tensor | float = 0.0  # [M, 1, 1] what the sum lacks on average

    def centred(self, inputs: Tensor, alive: Tensor) -> "FittedFunctions":
        """The same functions, centred over `inputs` [n, V] and `alive` [n, N]; their sum gets the mean 0."""
        present = alive.T  # [N, n]
        total = (self.heads.predict(inputs, self.gates) * present).sum(2, keepdim=True)  # [M, N, 1]
        centre = total / present.sum(1, keepdim=True).clamp(min=1)
        offset = -total.sum(1, keepdim=True) / len(inputs)
        return FittedFunctions(self.heads, self.gates, centre, offset)

    def predict(self, inputs: Tensor, alive: Tensor) -> Tensor:
        """Rewards [M, N, n] of `inputs` [n, V]; the living [n, N] share the constants equally."""
        present = alive.T  # [N, n]
        constants = (self.centre * present).sum(-2, keepdim=True) + self.offset  # [M or 1, 1, n]
        share = constants / present.sum(0)
        return (self.heads.predict(inputs, self.gates) - self.centre + share) * present
