"""A learned model of the team reward, R ≈ f(all variables), that answers "what if" about one agent.

Its first layer is a sum over variables, so that what each agent's variables bring to it can be added and taken
away without another matrix product. Shapes: n transitions, N agents, V variables that vary, H hidden units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offmarl.credit.base import Progress
from offmarl.credit.fitted import FitConfig
from offmarl.credit.heads import minimise
from offmarl.credit.regression import perceptron
from offmarl.credit.samples import Samples
from offmarl.settings import Count, NonNegative, Positive
from offmarl.streams import stream


@dataclass
class TeamModelConfig(FitConfig):
    """The model and its fit; "measured" means on synthetic rewards of known causes, 50k transitions.

    Steps, batch and rates without a word were chosen with the model and not varied.
    """

    width: Count = 128  # hidden units; 256 measured equal at twice the cost
    depth: Count = 2  # hidden layers
    steps: Count = 4_000
    batch_size: Count = 256
    learning_rate: Positive = 5e-3  # Adam, cosine
    sparsity: NonNegative = 0.007  # λ of the gates' L1 norm: 0 fits the noise of variables that do not matter
    gate_learning_rate: Positive = 5e-3
    warm_up: Count = 100  # steps of linear warm-up


class TeamRewardModel:
    """ReLU network on the standardised variables, in standard deviations of R, with a gate on each variable.

    The gates are held down by their L1 norm: λ Σ_v |g_v| joins the squared error.
    """

    def __init__(
        self,
        samples: Samples,
        visible: Tensor,
        config: TeamModelConfig,
        seed: int,
        progress: Progress,
    ) -> None:
        """Fit it to `samples` by least squares; it looks at the variables `visible` [V] bool only."""
        device = samples.inputs.device
        self.visible = visible.nonzero().squeeze(1)
        sizes = [len(self.visible), *[config.width] * config.depth, 1]
        self.network = perceptron(sizes, stream(seed, "team model", "init"), device)
        gates = torch.ones(len(self.visible), device=device, requires_grad=True)
        inputs = samples.inputs[:, self.visible]
        generator = stream(seed, "team model", "batches", device=device)

        def loss(step: int) -> Tensor:
            progress("team model", step + 1, config.steps)
            batch = torch.randint(len(inputs), (config.batch_size,), generator=generator, device=device)
            error = self.network(inputs[batch] * gates).squeeze(1) - samples.team_reward[batch]
            return error.square().mean() + config.sparsity * gates.abs().sum()

        weights: list[Tensor] = list(self.network.parameters())
        rates = [(weights, config.learning_rate), ([gates], config.gate_learning_rate)]
        minimise(loss, rates, range(config.steps), config.steps, config.warm_up)
        self.network.requires_grad_(requires_grad=False)
        first = self.network[0]
        assert isinstance(first, nn.Linear)
        self.first_bias = first.bias  # [H]
        self.first_weight = torch.zeros(samples.inputs.shape[1], len(first.bias), device=device)  # [V, H]
        self.first_weight[self.visible] = (first.weight * gates.detach()).T

    def __call__(self, inputs: Tensor) -> Tensor:
        """Predicted reward [n] of `inputs` [n, V]."""
        return self.after_first_layer(self.first_layer(inputs))

    def first_layer(self, inputs: Tensor) -> Tensor:
        """What enters the first ReLU: [n, V] -> [n, H]."""
        return torch.addmm(self.first_bias, inputs, self.first_weight)

    def after_first_layer(self, entering: Tensor) -> Tensor:
        """Predicted reward [...] from what enters the first ReLU [..., H]."""
        predicted: Tensor = self.network[1:](entering).squeeze(-1)
        return predicted

    def contributions(self, inputs: Tensor, belongs: Tensor) -> Tensor:
        """What the variables of each agent, `belongs` [N, V] bool, bring to the first layer: [n, N, H]."""
        per_agent = self.first_weight * belongs.unsqueeze(-1)  # [N, V, H]
        return torch.einsum("nv,avh->nah", inputs, per_agent)
