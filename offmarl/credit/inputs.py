"""What a decomposition may look at: the variables of one transition, with a name and an owner each.

Shapes: R rows, n transitions, N agents, O observation, A action, K choices, D state, V variables.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn import functional

from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.errors import unknown_name

NOBODY = -1  # owner of a variable that belongs to no agent
NOBODY_NAME = "nobody"  # how a user's map writes it


@dataclass(frozen=True)
class InputLayout:
    """Names and owners of the V variables that `transition_inputs` returns, in its order."""

    names: tuple[str, ...]
    owner: Tensor  # [V] int64, agent index or NOBODY

    def belongs(self, n_agents: int) -> Tensor:
        """[N, V] bool: variable v is agent i's own."""
        return self.owner[None, :] == torch.arange(n_agents)[:, None]

    @property
    def shared(self) -> Tensor:
        """[V] bool: variable v is nobody's."""
        return self.owner == NOBODY

    def kinds(self) -> tuple[Tensor, Tensor]:
        """Which variables are actions and which are successors: [V] bool each.

        Successors are named `next.<name>` after a variable of the situation; an action has none.
        """
        known = set(self.names)
        successor = torch.tensor([name.startswith("next.") and name[5:] in known for name in self.names])
        situation = torch.tensor([f"next.{name}" in known for name in self.names])
        return ~(successor | situation), successor


def input_layout(spec: EnvSpec, owner: Mapping[str, str] | None = None) -> InputLayout:
    """The variables of one transition of `spec`: situation, actions, next situation.

    The situation is the global state where the environment says who owns its dimensions, otherwise all
    agents' observations, each owned by its agent. Discrete actions are one-hot. Successors are named
    `next.<name>`: rewards of many tasks (the particle worlds, for instance) depend on them. What agents were paid
    (`spec.state_rewards`) is left out of the state: it is the answer.

    `owner` corrects who owns what: a variable's name, or a pattern such as `*.prey.*`, to an agent's name or
    `nobody`. A name beats a pattern, a later pattern an earlier one, and a successor follows its variable
    unless it is given itself, by a name or a pattern that begins with `next.`. Raises `UsageError` for a variable
    that does not exist, a pattern that fits none and an unknown owner.
    """
    if spec.state_owner:
        told = set(spec.state_rewards)
        whole = enumerate(zip(spec.state_names, spec.state_owner, strict=True))
        situation = [variable for dimension, variable in whole if dimension not in told]
    else:
        situation = _prefixed(spec, spec.obs_names)
    action = _prefixed(spec, spec.action_names)
    successor = [(f"next.{name}", agent) for name, agent in situation]
    variables = situation + action + successor
    names = tuple(name for name, _ in variables)
    given = _given_owners(spec, names, {name for name, _ in successor}, owner or {})
    owners = [given.get(name, given.get(name.removeprefix("next."), usual)) for name, usual in variables]
    return InputLayout(names, torch.tensor(owners))


def _given_owners(
    spec: EnvSpec, names: tuple[str, ...], successors: Set[str], owner: Mapping[str, str]
) -> dict[str, int]:
    """The owner of every variable that the user's map speaks of; of successors only where it names them so."""
    index = {name: agent for agent, name in enumerate(spec.agents)} | {NOBODY_NAME: NOBODY}
    by_pattern: dict[str, int] = {}
    by_name: dict[str, int] = {}
    for key, who in owner.items():
        if who not in index:
            raise unknown_name(f"owner of '{key}'", who, index)
        of_successors = key.startswith("next.")
        fitting = [name for name in names if fnmatchcase(name, key) and (name in successors) == of_successors]
        if key in names:
            by_name[key] = index[who]
        elif fitting:
            by_pattern |= dict.fromkeys(fitting, index[who])
        else:
            raise unknown_name("variable", key, names)
    return by_pattern | by_name


def _prefixed(spec: EnvSpec, names: tuple[tuple[str, ...], ...]) -> list[tuple[str, int]]:
    return [
        (f"{agent}.{name}", index)
        for index, (agent, own) in enumerate(zip(spec.agents, names, strict=True))
        for name in own
    ]


def transition_inputs(transitions: Transitions, rows: Tensor) -> Tensor:
    """The variables of the transitions that start in `rows` [n]: [n, V] float32, raw units."""
    spec = transitions.spec
    if spec.state_owner:
        situation = _untold(transitions.column("state")[rows], spec)
        successor = _untold(transitions.column("state")[rows + 1], spec)
    else:
        situation = _true_widths(transitions.column("obs")[rows], spec.obs_names)
        successor = _true_widths(transitions.column("obs")[rows + 1], spec.obs_names)
    action = transitions.column("action")[rows]
    if spec.discrete:
        action = functional.one_hot(action.long(), spec.action_dim)  # [n, N, K]
    return torch.cat([situation, _true_widths(action, spec.action_names), successor], 1).float()


def _untold(state: Tensor, spec: EnvSpec) -> Tensor:
    """States [n, D] without what they tell of the agents' rewards."""
    told = spec.state_rewards
    if not told:
        return state
    kept = torch.ones(state.shape[1], dtype=torch.bool, device=state.device)
    kept[list(told)] = False
    return state[:, kept]


def _true_widths(padded: Tensor, names: tuple[tuple[str, ...], ...]) -> Tensor:
    """[n, N, widest] without the padding of narrower agents: [n, sum of true widths]."""
    return torch.cat([padded[:, agent, : len(own)] for agent, own in enumerate(names)], 1)
