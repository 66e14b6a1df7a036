"""StarCraft II battles of the package smacv2 as a PettingZoo `ParallelEnv`; runs inside worker processes.

Imports neither torch nor the rest of the package. Shapes: N agents, M enemies, O observation, K choices.
"""

import os
import random
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from offmarl.errors import UsageError

INSTALLATION = (
    "StarCraft II battles need three things: (1) the package: pip install "
    "git+https://github.com/oxwhirl/smacv2.git (PyPI's 'smac' is something else); (2) the game, version 4.10: unpack "
    "http://blzdistsc2-a.akamaihd.net/Linux/SC2.4.10.zip and set SC2PATH to its StarCraftII folder; (3) the maps: "
    "unpack https://github.com/oxwhirl/smacv2/releases/download/maps/SMAC_Maps.zip into $SC2PATH/Maps/SMAC_Maps. "
    "SMAX needs none of them: smax_3m, smax_smacv2_5_units, ..."
)
_MOVES = ("no_op", "stop", "move_north", "move_south", "move_east", "move_west")
_UNIT = re.compile(r"(ally|enemy)_(.+?)_(\d+)(?:_(bit|action)_(\d+))?")


def parallel_env(arguments: dict[str, Any], capabilities: dict[str, Any] | None) -> "Battle":
    """A battle: `StarCraftCapabilityEnvWrapper` with these capabilities, or a plain `StarCraft2Env` without."""
    return Battle(arguments, capabilities)


class Battle:
    """One StarCraft II battle, spoken to by the names of its agents, ally_0 and so on.

    The dead stay, with nothing but `no_op` to do. The game is launched by the first `reset`, whose seed is the
    game's; the seed of every `reset` decides who fights where, as far as that is drawn.
    """

    winnable = True

    def __init__(self, arguments: dict[str, Any], capabilities: dict[str, Any] | None):
        self._arguments, self._capabilities = arguments, capabilities
        self._env = self._make(seed=0)
        self._launched = False
        info = self._env.get_env_info()
        self.max_cycles = int(info["episode_limit"])
        self.possible_agents = [f"ally_{i}" for i in range(info["n_agents"])]
        self.agents: list[str] = []
        self._space = spaces.Box(-np.inf, np.inf, (int(info["obs_shape"]),), np.float32)
        self._choices = spaces.Discrete(int(info["n_actions"]))
        self.state_space = spaces.Box(-np.inf, np.inf, (int(info["state_shape"]),), np.float32)
        self._state: NDArray[Any] = np.zeros(self.state_space.shape, np.float32)
        self._seen: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    def _make(self, seed: int) -> Any:
        try:
            from smacv2.env.starcraft2.starcraft2 import StarCraft2Env
            from smacv2.env.starcraft2.wrapper import StarCraftCapabilityEnvWrapper
        except ImportError as error:
            raise UsageError(f"smacv2 cannot be imported ({error}). {INSTALLATION}") from error
        # With continuing_episode the package says when an episode ended for lack of time, and changes nothing else.
        arguments = {**self._arguments, "seed": seed, "continuing_episode": True}
        if self._capabilities is None:
            return StarCraft2Env(**arguments)
        # A copy: the wrapper writes into what it is given.
        return StarCraftCapabilityEnvWrapper(capability_config=deepcopy(self._capabilities), **arguments)

    @property
    def unwrapped(self) -> "Battle":
        """Itself."""
        return self

    @property
    def names(self) -> dict[str, list[Any]]:
        """What the numbers are: `obs` (per agent), `state` and `choices`."""
        observed = list(self._env.get_obs_feature_names())
        return {
            "obs": [
                [_called(name, viewer, len(self.possible_agents)) for name in observed]
                for viewer in range(len(self.possible_agents))
            ],
            "state": [_called(name) for name in self._env.get_state_feature_names()],
            "choices": self._choice_names(),
        }

    def observation_space(self, agent: str) -> Any:
        """The same for all."""
        return self._space

    def action_space(self, agent: str) -> Any:
        """The same for all."""
        return self._choices

    def state(self) -> NDArray[Any]:
        """The global state."""
        return self._state

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a battle. Raises `UsageError` where the game or its maps are missing."""
        self.agents = list(self.possible_agents)
        if not self._launched:
            self._env = self._make(seed or 0)
        self._draw_by(seed or 0)
        try:
            self._env.reset()  # what it returns is nothing after a failed start that it repeats by itself
        except Exception as error:
            if not self._launched and not _game_is_there():
                raise UsageError(f"the game cannot be started ({error}). {INSTALLATION}") from error
            raise
        self._launched = True
        self._look()
        return self._seen

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Advance by one joint choice; everybody gets an equal share of the team's reward."""
        reward, over, info = self._env.step([int(actions[agent]) for agent in self.possible_agents])
        # Without a word about the battle the game broke down and was restarted: time was cut, nothing was decided,
        # and there is nothing to see, so that the last sight is also the final one.
        broke_down = over and "battle_won" not in info
        cut = broke_down or (over and bool(info.get("episode_limit", False)))
        if not broke_down:
            self._look()
        observations, infos = self._seen
        won = bool(info.get("battle_won", False))
        infos = {agent: {**told, "won": won} for agent, told in infos.items()}
        agents, self.agents = self.agents, [] if over else self.agents
        return (
            observations,
            dict.fromkeys(agents, float(reward) / len(agents)),
            dict.fromkeys(agents, bool(over) and not cut),
            dict.fromkeys(agents, cut),
            infos,
        )

    def close(self) -> None:
        """Close the game."""
        self._env.close()

    def _look(self) -> None:
        masks = [np.asarray(mask, bool) for mask in self._env.get_avail_actions()]
        observations = dict(zip(self.possible_agents, self._env.get_obs(), strict=True))
        # Only the dead may, and must, choose no_op.
        infos = {
            agent: {"action_mask": mask, "alive": not mask[0]}
            for agent, mask in zip(self.possible_agents, masks, strict=True)
        }
        self._state = np.asarray(self._env.get_state(), np.float32)
        self._seen = observations, infos

    def _draw_by(self, seed: int) -> None:
        """Let teams and positions follow the seed: the package draws them from generators of its own."""
        random.seed(seed)
        distributions = list(getattr(self._env, "env_key_to_distribution_map", {}).values())
        for k, distribution in enumerate(distributions):
            pending, number = [distribution], 0
            while pending:
                one = pending.pop()
                for name, held in sorted(vars(one).items()):
                    if isinstance(held, np.random.Generator):
                        setattr(one, name, np.random.default_rng([seed, k, number]))
                        number += 1
                    elif type(held).__module__ == type(distribution).__module__:
                        pending.append(held)

    def _choice_names(self) -> list[str]:
        turns = [f"look_{k}" for k in range(self._arguments.get("num_fov_actions", 12))]
        names = [*_MOVES, *(turns if self._arguments.get("conic_fov") else ())]
        return [*names, *(f"target_{j}" for j in range(int(self._choices.n) - len(names)))]


def _called(name: str, viewer: int | None = None, agents: int = 0) -> str:
    """`ally_health_3` -> `ally_3.health`, `own_pos_x` -> `position_x`.

    The package names observations as the first agent sees them, who is never among its own allies: for another
    viewer the allies are those before and after it.
    """
    if name.startswith("own_"):
        return name.removeprefix("own_").replace("pos_", "position_")
    match = _UNIT.fullmatch(name)
    if match is None:
        return name
    side, quantity, number, kind, part = match.groups()
    index = int(number)
    if viewer is not None and side == "ally":
        index = [other for other in range(agents) if other != viewer][index - 1]
    return f"{side}_{index}.{quantity}" + (f"_{kind}_{part}" if kind else "")


def _game_is_there() -> bool:
    folder = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()
    return (folder / "Versions").is_dir() and any((folder / "Maps").glob("**/*.SC2Map"))
