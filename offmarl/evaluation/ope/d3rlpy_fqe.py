"""d3rlpy's fitted Q evaluation (Seno & Imai 2022), for the team or per agent: a second opinion on `fitted_q`.

Its Q functions and their update are d3rlpy's own; what they are fed with is the same: for the team everyone's
observations or the state, time, the joint action. Per agent each has a Q function of the team's reward that sees the
agent's own observation and action alone, and what is said is their mean: d3rlpy cannot fit a sum of several. Policies
and agents one after another, so it takes as many times as long. The target network is copied every 1 / τ steps, as
often as ours moves by its own size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from offmarl.errors import UsageError
from offmarl.evaluation.ope.config import OpeConfig
from offmarl.evaluation.ope.fitted_q import (
    QInputs,
    QValues,
    Scope,
    hold_out,
    moments_to_go,
    recorded_actions,
    require_finite,
)
from offmarl.evaluation.ope.logged import Logged
from offmarl.streams import stream, stream_seed

INSTALL = "d3rlpy_fqe needs d3rlpy: pip install 'offmarl[d3rlpy]'"


class _Recorded:
    """The policy as d3rlpy wants it: asked what it does in the successors of a batch, it says what it was told."""

    def __init__(self) -> None:
        self.impl = self
        self.next_action: Tensor | None = None

    def predict_best_action(self, observations: Tensor) -> Tensor | None:
        """[B, A] for the batch at hand."""
        return self.next_action


def d3rlpy_fitted_q(
    logged: Logged,
    config: OpeConfig,
    scope: Scope = "team",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> QValues:
    """Fit d3rlpy's FQE to each policy, and to the data's own actions, and evaluate them in the initial states.

    Raises `UsageError` where d3rlpy is not installed, `DataError` as `fitted_q` does.
    """
    try:
        from d3rlpy.models.encoders import VectorEncoderFactory
        from d3rlpy.ope import FQE, FQEConfig
        from d3rlpy.torch_utility import TorchMiniBatch
    except ImportError as error:
        raise UsageError(INSTALL) from error
    transitions, device = logged.transitions, logged.transitions.device
    with_data = torch.cat([logged.action, recorded_actions(transitions).unsqueeze(0)])
    inputs = QInputs(transitions, logged.time, scope)
    held_out = hold_out(transitions.n_episodes, config.held_out).to(device)
    rows = transitions.transition_rows
    rows = rows[~held_out[logged.episode[rows]]]
    _, scale = moments_to_go(logged, rows, config.gamma)
    reward, ended = (logged.reward / scale).float().unsqueeze(1), transitions.column("done").unsqueeze(1)
    first = transitions.episode_start[:-1]
    width = inputs.action_width
    fits = [(policy, agent) for policy in range(len(with_data)) for agent in range(inputs.per_policy)]
    values = []
    for done, (policy, agent) in enumerate(fits):
        told: Any = _Recorded()
        made: Any = FQE(
            told,
            FQEConfig(
                learning_rate=config.learning_rate,
                encoder_factory=VectorEncoderFactory(list(config.hidden)),
                gamma=config.gamma,
                target_update_interval=max(1, round(1 / config.tau)),
            ),
            device="cuda:0" if device.type == "cuda" else "cpu",
        )
        generator = stream(seed, "ope", "fitted_q", scope)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(stream_seed(seed, "ope", "d3rlpy_fqe"))
            made.create_impl((inputs.width - width,), width)
            for step in range(1, config.steps + 1):
                drawn = rows[torch.randint(len(rows), (config.batch_size,), generator=generator).to(device)]
                now = inputs.of(drawn, with_data[-1:, drawn])[agent]
                successor = inputs.of(drawn + 1, with_data[policy : policy + 1, drawn + 1])[agent]
                told.next_action = successor[:, -width:]
                batch = TorchMiniBatch(
                    observations=now[:, :-width],
                    actions=now[:, -width:],
                    rewards=reward[drawn],
                    next_observations=successor[:, :-width],
                    next_actions=successor[:, -width:],
                    returns_to_go=torch.zeros_like(reward[drawn]),
                    terminals=ended[drawn],
                    intervals=torch.ones_like(reward[drawn]),
                    device=str(device),
                )
                made.impl.update(batch, step)
                if progress is not None:
                    progress(done * config.steps + step, len(fits) * config.steps)
            start = inputs.of(first, with_data[policy : policy + 1, first])[agent]
            with torch.no_grad():
                standardised = made.impl.predict_value(start[:, :-width], start[:, -width:])
        values.append(standardised.double() * scale)
    found = torch.stack(values).unflatten(0, (-1, inputs.per_policy)).mean(1)  # [S + 1, E]
    require_finite(found[-1])  # what checks the others; of a policy NaN says that nothing can be told
    return QValues(found[:-1], found[-1], held_out)
