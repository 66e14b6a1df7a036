"""MACCA as published: one reward network for all agents behind soft masks, held by sparsity alone.

Source: Wang et al. 2023, "MACCA: offline multi-agent reinforcement learning with causal credit assignment",
arXiv 2312.03644, section 4, and the authors' code (github.com/ziyan-wang98/MACCA). It is the method that
`macca` is measured against. The masks are learned together with the rewards,

    r̂_i = ψ_r(ĉ_i^s ∘ s, ĉ_i^a ∘ a, i),   L = E[(R - Σ_i r̂_i)²] + λ1 Σ_i |ĉ_i^s|_1 + λ2 Σ_i |ĉ_i^a|_1,

and at inference edges with ĉ ≤ h are cut. Nothing in L says whose reward a variable belongs to: every way of
sharing R out among the agents that needs as few variables is as good as the truth.

What differs from the authors' code, so that the baseline is at its best:
- inputs and R are standardised and the networks learn at 1e-3: raw inputs at 5e-2 went dead on some seeds;
- static masks are one an agent as in the paper's equations; in the code all agents share one column whose last
  entries are forced to 1, so that only the one-hot name tells agents apart;
- static masks start at 1, not at random numbers of either sign;
- the next observation is an input (`next_state`), without which rewards of the successor cannot be explained;
- the causal model is fitted before any policy, on minibatches of its own;
- constants are shared out equally and `exact_sum` makes rewards add up to R, as everywhere here, so that
  methods are compared by what they find out and not by conventions.

Shapes: B batch, N agents, V variables that vary, n transitions.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from offmarl.credit.fitted import FitConfig
from offmarl.credit.heads import minimise
from offmarl.credit.regression import Regression, perceptron
from offmarl.credit.samples import Samples
from offmarl.data.table import Transitions
from offmarl.settings import Count, NonNegative, Positive
from offmarl.streams import stream


@dataclass
class MaccaPaperConfig(FitConfig):
    """The paper's hyper-parameters but for what the module's docstring lists.

    The paper fits while a policy learns and names no number of steps or batch of the causal model's own: those here
    were chosen, not tuned.
    """

    masks: Literal["static", "dynamic"] = "static"  # ĉ_i one for all transitions, or ψ_g(s, a, i)
    state_sparsity: NonNegative = 0.007  # λ1, paper
    action_sparsity: NonNegative = 0.007  # λ2, paper
    # |·|_1 as the paper's sum or as the code's mean; None: the sum for static masks (the mean fits noise), the
    # mean for dynamic ones (under the sum they vanish and the fit is worse: R² .75 against .89)
    sparsity_norm: Literal["sum", "mean"] | None = None
    threshold: NonNegative = 0.1  # h, paper; the code has 0.5 for dynamic masks
    next_state: bool = True  # s' is an input beside s and a
    reward_width: Count = 256  # ψ_r, paper: 3 x 256 (code: 4 x 64)
    reward_depth: Count = 3
    mask_width: Count = 256  # ψ_g, paper: 2 x 256
    mask_depth: Count = 2
    steps: Count = 2_000
    batch_size: Count = 256
    learning_rate: Positive = 1e-3  # ψ_r and ψ_g, Adam, cosine; code: 5e-2
    mask_learning_rate: Positive = 5e-3  # static masks; code: 5e-4, for many more steps
    warm_up: Count = 100  # steps of linear warm-up


class MaccaPaper(Regression):
    """The published formulation; see the module's docstring."""

    config_class = MaccaPaperConfig
    config: MaccaPaperConfig
    visible: Tensor  # [V] bool: what ψ sees
    action: Tensor  # [V] bool: what λ2 and not λ1 weighs
    names: Tensor  # [N, N] one-hot name of each agent
    reward_network: nn.Sequential  # ψ_r
    mask_network: nn.Sequential  # ψ_g, dynamic masks
    static_mask: Tensor  # [N, V] ĉ, static masks

    # -- the model -----------------------------------------------------------------------------------------

    def mask_weights(self, inputs: Tensor) -> Tensor:
        """ĉ of every agent for `inputs` [B, V]: [B, N, V], the static ones [1, N, V]."""
        if self.config.masks == "static":
            return (self.static_mask * self.visible).unsqueeze(0)
        scores = self.mask_network(self.with_name((inputs * self.visible).unsqueeze(1)))
        return torch.sigmoid(scores) * self.visible

    def rewards(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """ψ_r of every agent: [B, V] and [B or 1, N, V] to [B, N]."""
        rewards: Tensor = self.reward_network(self.with_name(inputs.unsqueeze(1) * mask)).squeeze(2)
        return rewards

    def with_name(self, inputs: Tensor) -> Tensor:
        """[B, N or 1, V] with the agent's one-hot name behind: [B, N, V + N]."""
        batch, N = len(inputs), self.spec.n_agents
        return torch.cat([inputs.expand(-1, N, -1), self.names.expand(batch, -1, -1)], 2)

    # -- the losses ----------------------------------------------------------------------------------------

    @staticmethod
    def reconstruction(agent_reward: Tensor, team_reward: Tensor) -> Tensor:
        """E[(R - Σ_i r̂_i)²]; [B, N] and [B]."""
        return (agent_reward.sum(1) - team_reward).square().mean()

    def sparsity(self, mask: Tensor) -> Tensor:
        """λ1 Σ_i |ĉ_i^s|_1 + λ2 Σ_i |ĉ_i^a|_1, of masks [B or 1, N, V]."""
        config = self.config
        price = torch.where(self.action, config.action_sparsity, config.state_sparsity)  # [V]
        if (config.sparsity_norm or ("sum" if config.masks == "static" else "mean")) == "mean":
            price = price / torch.where(self.action, self.action.sum(), (self.visible & ~self.action).sum())
        return (price * mask.abs()).sum((1, 2)).mean()

    # -- learning ------------------------------------------------------------------------------------------

    def regress(self, samples: Samples, transitions: Transitions) -> None:
        """Fit masks and the reward network together."""
        config, N, variables = self.config, self.spec.n_agents, samples.inputs.shape[1]
        varying = samples.scale.varying.cpu()
        action, successor = (kind[varying].to(self.device) for kind in self.layout.kinds())
        self.action = action
        self.visible = torch.ones_like(successor) if config.next_state else ~successor
        self.names = torch.eye(N, device=self.device)
        init = stream(self.seed, "macca-paper", "init")
        wide = [variables + N, *[config.reward_width] * config.reward_depth, 1]
        self.reward_network = perceptron(wide, init, self.device)
        weights: list[Tensor] = list(self.reward_network.parameters())
        groups = [(weights, config.learning_rate)]
        if config.masks == "static":
            self.static_mask = torch.ones(N, variables, device=self.device, requires_grad=True)
            groups.append(([self.static_mask], config.mask_learning_rate))
        else:
            wide = [variables + N, *[config.mask_width] * config.mask_depth, variables]
            self.mask_network = perceptron(wide, init, self.device)
            weights.extend(self.mask_network.parameters())
        generator = stream(self.seed, "macca-paper", "batches", device=self.device)

        def loss(step: int) -> Tensor:
            self.report("macca-paper", step + 1, config.steps)
            drawn = (config.batch_size,)
            batch = torch.randint(len(samples.inputs), drawn, generator=generator, device=self.device)
            inputs = samples.inputs[batch]
            mask = self.mask_weights(inputs)
            agent_reward = self.rewards(inputs, mask) * samples.alive[batch]
            return self.reconstruction(agent_reward, samples.team_reward[batch]) + self.sparsity(mask)

        minimise(loss, groups, range(config.steps), config.steps, config.warm_up)

    # -- the answer ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def individual(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """Rewards [n, N] with masks cut at h."""
        inputs = self.scale.inputs(transitions, rows)
        mask = self.mask_weights(inputs)
        return self.rewards(inputs, mask * (mask.abs() > self.config.threshold))

    @torch.no_grad()
    def edges(self, samples: Samples) -> tuple[Tensor | None, Tensor | None]:
        """Edges with mean |ĉ| > h over the held-out transitions, and the share of them where |ĉ| > h."""
        total = torch.zeros(self.spec.n_agents, samples.inputs.shape[1], device=self.device)
        open_ = torch.zeros_like(total)
        for inputs in samples.heldout_inputs.split(1024):
            mask = self.mask_weights(inputs).abs().expand(len(inputs), -1, -1)
            total += mask.sum(0)
            open_ += (mask > self.config.threshold).sum(0)
        count = len(samples.heldout_inputs)
        return total / count > self.config.threshold, open_ / count
