"""A battle with the interface of smacv2's StarCraft2Env. Choosing an illegal action fails.

Every enemy has 2 health, every ally 1; with each third step the first living ally dies. Asked for by difficulty:
"1" the game breaks down in the third step, "2" it cannot be launched, "3" the first reset is repeated.
"""

import random

import numpy as np

MAPS = {"3m": (3, 3, 20), "2m_vs_1z": (2, 1, 4), "10gen_terran": (10, 10, 20), "10gen_zerg": (10, 10, 20)}


class CannotResetException(Exception):  # noqa: N818
    pass


class StarCraft2Env:
    def __init__(
        self,
        map_name="8m",
        difficulty="7",
        seed=None,
        continuing_episode=False,
        obs_last_action=False,
        obs_own_pos=False,
        conic_fov=False,
        num_fov_actions=12,
        fully_observable=False,
        use_unit_ranges=False,
        min_attack_range=2,
        reward_sparse=False,
        reward_scale_rate=20,
        capability_config=None,
    ):
        self.n_agents, self.n_enemies, self.episode_limit = MAPS[map_name]
        if capability_config:
            self.n_agents = capability_config["team_gen"]["n_units"]
            self.n_enemies = capability_config["team_gen"]["n_enemies"]
        self.difficulty, self.seed_of_game, self.obs_own_pos = difficulty, seed, obs_own_pos
        self.continuing_episode, self.rate = continuing_episode, reward_scale_rate
        self.n_actions = 6 + (num_fov_actions if conic_fov else 0) + self.n_enemies
        self.resets = 0

    def reset(self, episode_config=None):
        self.resets += 1
        if self.difficulty == "2":
            raise RuntimeError("no StarCraft II found")
        if self.difficulty == "3" and self.resets == 1:
            raise CannotResetException
        config = episode_config or {}
        teams = config.get("team_gen", {"ally_team": [0] * self.n_agents})["ally_team"]
        places = config.get("ally_start_positions", {"item": np.zeros((self.n_agents, 2))})["item"]
        self.types, self.places, self.time = teams, places, 0
        self.drawn = random.random()
        self.ally_health, self.enemy_health = np.ones(self.n_agents), np.full(self.n_enemies, 2.0)
        self.last_action = np.zeros((self.n_agents, self.n_actions))
        return self.get_obs(), self.get_state()

    def step(self, actions):
        assert all(isinstance(action, int) for action in actions)
        for agent, action in enumerate(actions):
            assert self.get_avail_agent_actions(agent)[action], f"agent {agent} chose the illegal {action}"
        self.time += 1
        if self.difficulty == "1" and self.time == 3:
            self.ally_health[:] = -7  # what is seen now means nothing
            return 0, True, {}
        self.last_action = np.eye(self.n_actions)[np.array(actions)]
        before = self.enemy_health.sum()
        for action in actions:
            target = action - (self.n_actions - self.n_enemies)
            if target >= 0:
                self.enemy_health[target] = max(0.0, self.enemy_health[target] - 1)
        if self.time % 3 == 0:
            self.ally_health[np.flatnonzero(self.ally_health)[0]] = 0
        reward = before - self.enemy_health.sum()
        dead_allies, dead_enemies = int((self.ally_health == 0).sum()), int((self.enemy_health == 0).sum())
        info = {"battle_won": False, "dead_allies": dead_allies, "dead_enemies": dead_enemies}
        terminated = False
        if dead_enemies == self.n_enemies or dead_allies == self.n_agents:
            terminated = True
            info["battle_won"] = dead_enemies == self.n_enemies
            reward += 4 * info["battle_won"]
        elif self.time >= self.episode_limit:
            terminated = True
            if self.continuing_episode:
                info["episode_limit"] = True
        return reward * self.rate / (2 * self.n_enemies + 4), terminated, info

    def get_obs_feature_names(self):
        names = ["move_action_north"]
        names += [f"enemy_{what}_{e}" for e in range(self.n_enemies) for what in ("shootable", "health")]
        names += [f"ally_{what}_{a}" for a in range(1, self.n_agents) for what in ("visible", "health")]
        names += [
            "own_health",
            *(["own_pos_x", "own_pos_y"] if self.obs_own_pos else []),
            "own_unit_type_bit_0",
        ]
        return names

    def get_obs_agent(self, agent):
        if self.ally_health[agent] <= 0:
            return np.zeros(len(self.get_obs_feature_names()), np.float32)
        others = [other for other in range(self.n_agents) if other != agent]
        seen = [1.0] + [x for health in self.enemy_health for x in (health > 0, health)]
        seen += [x for other in others for x in (self.ally_health[other] > 0, self.ally_health[other])]
        seen += [
            self.ally_health[agent],
            *(self.places[agent] if self.obs_own_pos else []),
            self.types[agent],
        ]
        return np.array(seen, np.float32)

    def get_obs(self):
        return [self.get_obs_agent(agent) for agent in range(self.n_agents)]

    def get_state_feature_names(self):
        names = [f"ally_health_{a}" for a in range(self.n_agents)]
        names += [f"enemy_health_{e}" for e in range(self.n_enemies)]
        return names + [
            f"ally_last_action_{a}_action_{k}" for a in range(self.n_agents) for k in range(self.n_actions)
        ]

    def get_state(self):
        return np.concatenate([self.ally_health, self.enemy_health, self.last_action.ravel()]).astype(
            np.float32
        )

    def get_avail_agent_actions(self, agent):
        legal = [0] * self.n_actions
        if self.ally_health[agent] <= 0:
            legal[0] = 1
            return legal
        legal[1 : self.n_actions - self.n_enemies] = [1] * (self.n_actions - self.n_enemies - 1)
        legal[self.n_actions - self.n_enemies :] = [int(health > 0) for health in self.enemy_health]
        return legal

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(agent) for agent in range(self.n_agents)]

    def get_env_info(self):
        return {
            "state_shape": len(self.get_state_feature_names()),
            "obs_shape": len(self.get_obs_feature_names()),
            "cap_shape": 1,
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def close(self):
        pass
