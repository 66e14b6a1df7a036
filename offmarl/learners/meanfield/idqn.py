"""Independent Q-learning (Tampuu et al. 2017): the paper's IQL, which knows nothing of what others do."""

from collections.abc import Sequence

import torch

from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError
from offmarl.learners.meanfield.q_learning import MeanFieldQ, MeanFieldQConfig


class IDQN(MeanFieldQ):
    """Q(s, a): each unit by what it sees alone."""

    looks_around = False

    def __init__(
        self,
        spec: EnvSpec,
        config: MeanFieldQConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        if config.scope != "own" or config.radius is not None:
            raise UsageError(
                "idqn looks at no neighbours: learner.scope and learner.radius go with mfq or cmfq"
            )
        super().__init__(spec, config, seeds, device)
