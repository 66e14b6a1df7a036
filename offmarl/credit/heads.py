"""Reward heads of all agents and all ensemble members as one stacked network, and the loop that fits it.

Shapes: M members, N agents, G groups of samples, B samples (all groups), V variables, H hidden units.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class RewardHeads:
    """M x N independent ReLU networks: head (m, i) maps the gated variables to agent i's reward.

    The first layer of all heads of a member is one matrix product, with the gates multiplied into its weights
    instead of into N copies of the samples.
    """

    def __init__(
        self,
        fan_in: Tensor,
        variables: int,
        width: int,
        depth: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        """`fan_in` [M, N] is the number of variables that are open to each head (it scales its first layer)."""
        members, agents = fan_in.shape
        self.agents, self.width = agents, width
        stack = members * agents

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        scale = (2 / fan_in.clamp(min=1)).sqrt().view(members, 1, agents, 1).cpu()
        self.input_weight = normal(members, variables, agents, width) * scale  # [M, V, N, H]
        self.weights = [normal(stack, width, width) * math.sqrt(2 / width) for _ in range(depth - 1)]
        self.weights.append(normal(stack, width, 1) * math.sqrt(1 / width))  # [M*N, H, 1]
        self.biases = [torch.zeros(stack, 1, width) for _ in range(depth)] + [torch.zeros(stack, 1, 1)]
        self.input_weight = self.input_weight.to(device).requires_grad_()
        self.weights = [weight.to(device).requires_grad_() for weight in self.weights]
        self.biases = [bias.to(device).requires_grad_() for bias in self.biases]

    @property
    def parameters(self) -> list[Tensor]:
        """Every trained tensor."""
        return [self.input_weight, *self.weights, *self.biases]

    def keep_variables(self, kept: Tensor) -> None:
        """Forget the first-layer weights of all variables but `kept` (indices)."""
        self.input_weight = self.input_weight.detach()[:, kept].requires_grad_()

    def __call__(self, samples: Tensor, gates: Tensor) -> Tensor:
        """Rewards [M, N, B] of `samples` [M or 1, B, V] under `gates` [M, G, N, V]; G divides B."""
        members, groups = gates.shape[:2]
        batch, variables = samples.shape[1:]
        gated = self.input_weight.unsqueeze(1) * gates.transpose(2, 3).unsqueeze(-1)  # [M, G, V, N, H]
        gated = gated.reshape(members * groups, variables, self.agents * self.width)
        grouped = samples.expand(members, -1, -1).reshape(members * groups, batch // groups, variables)
        hidden = torch.bmm(grouped, gated).view(members, batch, self.agents, self.width)
        hidden = hidden.transpose(1, 2).reshape(members * self.agents, batch, self.width)  # [M*N, B, H]
        hidden = torch.relu(hidden + self.biases[0])
        for weight, bias in zip(self.weights[:-1], self.biases[1:-1], strict=True):
            hidden = torch.relu(torch.baddbmm(bias, hidden, weight))
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1]).view(members, self.agents, batch)

    @torch.no_grad()
    def predict(self, samples: Tensor, gates: Tensor, chunk: int = 8192) -> Tensor:
        """Rewards [M, N, n] of `samples` [n, V] under fixed `gates` [M, N, V], in chunks."""
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
