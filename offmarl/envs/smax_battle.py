"""SMAX battles as pure functions of JAX, over E copies at once; imports jax and jaxmarl.

Composed of jaxmarl's own rules, in the order of its `step_env`, which `tests/envs/test_smax.py` holds it to. What
is added: one observation a step in place of three (the enemy's policy looks at what the last step saw),
and who dealt which damage.

Shapes: E copies, N allies, M enemies, U = N + M units, O observation, K choices, D state, B copies begun at once.
"""

import hashlib
import io
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
from jax import Array

from offmarl.home import offmarl_home

# jaxmarl prints which of its environments are missing, having reset Python's streams to the process's own.
with patch.multiple(sys, stdout=io.StringIO(), stderr=sys.stderr, __stdout__=io.StringIO()):
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario


class View(NamedTuple):
    """What the allies of every copy see, and what is true of them."""

    obs: Array  # [E, N, O]
    state: Array  # [E, D]
    legal: Array  # [E, N, K] bool
    alive: Array  # [E, N] bool
    position: Array  # [E, N, 2]


class Battlefield(NamedTuple):
    """What a step goes on from, in every copy."""

    key: Array  # [E, 2] uint32: where the copy's randomness continues
    battle: Any  # jaxmarl's state
    enemy_obs: Array  # [E, M, O]


class Outcome(NamedTuple):
    """What a step led to, besides the view."""

    team_reward: Array  # [E] what jaxmarl pays each ally
    damage: Array  # [E, N] the part of it that each ally's hits earned
    terminated: Array  # [E] bool: one side is gone
    done: Array  # [E] bool: so, or time is up
    won: Array  # [E] bool: the enemy is gone and an ally is left


@cache
def battles(scenario: str, **options: Any) -> "Battles":
    """The rules of `scenario`, made once a process; what is compiled is kept for later processes too."""
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        config.update("jax_compilation_cache_dir", str(offmarl_home() / "compiled" / _processor()))
    return Battles(scenario, **options)


def _processor() -> str:
    """A short name for what this machine's instructions are: compiled code runs on no other kind."""
    text = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        text += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # no Linux
        pass
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Battles:
    """The rules of one scenario, compiled once for every number of copies."""

    def __init__(self, scenario: str, **options: Any):
        self.rules = HeuristicEnemySMAX(scenario=map_name_to_scenario(scenario), **options)
        self._units = self.rules._env
        self.allies, self.enemies = self._units.num_allies, self._units.num_enemies
        self.begin = jax.jit(self._begin)
        self.step = jax.jit(jax.vmap(self._step))

    def empty(self, copies: int) -> tuple[Battlefield, View]:
        """Room for `copies` battles, to be filled by `begin`."""
        key = jax.ShapeDtypeStruct((copies, 2), jnp.uint32)
        shapes = jax.eval_shape(jax.vmap(self._fresh), key)
        room: tuple[Battlefield, View] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return room

    def _begin(self, field: Battlefield, view: View, keys: Array, copies: Array) -> tuple[Battlefield, View]:
        """Begin a battle in the copies numbered [B], with keys [B, 2]; numbers of E and above are ignored."""
        fresh = jax.vmap(self._fresh)(keys)
        begun: tuple[Battlefield, View] = jax.tree.map(
            lambda old, new: old.at[copies].set(new, mode="drop"), (field, view), fresh
        )
        return begun

    def _fresh(self, key: Array) -> tuple[Battlefield, View]:
        key, first = jax.random.split(key)
        _, battle = self.rules.reset(first)
        enemy_obs, view = self._look(battle)
        return Battlefield(key, battle, enemy_obs), view

    def _look(self, battle: Any) -> tuple[Array, View]:
        units, allies = battle.state, slice(self.allies)
        every = jnp.stack(list(self._units.get_obs_unit_list(units).values()))  # [U, O]
        seen = every
        if self._units.observation_type == "conic":  # allies only: the enemy's policy reads lists of units
            seen = jnp.stack(list(self._units.get_obs_conic(units).values()))
        legal = jnp.stack(list(self.rules.get_avail_actions(battle).values()))
        view = View(
            obs=seen[allies],
            state=self._units.get_world_state(units),
            legal=legal.astype(jnp.bool_),
            alive=units.unit_alive[allies],
            position=units.unit_positions[allies],
        )
        return every[self.allies :], view

    def _step(self, field: Battlefield, action: Array) -> tuple[Battlefield, View, Outcome, Array]:
        """Advance one copy by the allies' choices [N]; also the key of the battle that may begin next."""
        units, before = self._units, field.battle.state
        key, step_key, next_battle = jax.random.split(field.key, 3)
        step_key, enemy_key = jax.random.split(step_key)
        chosen, memory = self.rules.get_enemy_actions(
            enemy_key, field.battle.enemy_policy_state, field.enemy_obs
        )
        joint = jnp.concatenate([action, jnp.stack(list(chosen.values()))])  # [U]
        move, attack = units._decode_discrete_actions(joint)

        def advance(carry: tuple[Any, Array, Array], _: None) -> tuple[tuple[Any, Array, Array], None]:
            was, key, damage = carry
            key, world_key = jax.random.split(key)
            now = units._world_step(key=world_key, state=was, actions=(move, attack))
            damage = damage + self._damage(was, now, attack)
            now = units._update_dead_agents(units._kill_agents_touching_walls(now))
            now = units._push_units_away(now)
            now = now.replace(prev_movement_actions=move, prev_attack_actions=attack)
            return (now, key, damage), None

        start = (before, step_key, jnp.zeros(self.allies))
        (after, _, damage), _ = jax.lax.scan(advance, start, None, units.world_steps_per_env_step)
        after = after.replace(
            done=units.is_terminal(after),
            prev_movement_actions=move,
            prev_attack_actions=attack,
            step=after.step + 1,
        )
        rewards = units.compute_reward(after, before.unit_health, after.unit_health)
        battle = field.battle.replace(state=after, enemy_policy_state=memory)
        ally_left = after.unit_alive[: self.allies].any()
        enemy_left = after.unit_alive[self.allies :].any()
        outcome = Outcome(
            team_reward=rewards[self.rules.agents[0]],
            damage=damage,
            terminated=~(ally_left & enemy_left),
            done=after.done,
            won=ally_left & ~enemy_left,
        )
        enemy_obs, view = self._look(battle)
        return Battlefield(key, battle, enemy_obs), view, outcome, next_battle

    def _damage(self, was: Any, now: Any, attack: Array) -> Array:
        """What the hits of each ally took from the enemy in one tick, in the reward's units: [N].

        A unit hit exactly if its cooldown rose. Damage beyond what the target had left is nobody's: the hits
        on it share what there was in proportion to their force.
        """
        units, allies, enemies = self._units, slice(self.allies), slice(self.allies, None)
        hit = (now.unit_weapon_cooldowns > was.unit_weapon_cooldowns)[allies]
        force = jnp.where(hit, units.unit_type_attacks[was.unit_types[allies]], 0.0)  # [N]
        target = attack[allies] - units.num_movement_actions
        force = force[:, None] * (target[:, None] == jnp.arange(self.enemies))  # [N, M]
        taken = (was.unit_health - now.unit_health)[enemies] / units.unit_type_health[was.unit_types[enemies]]
        share = force / jnp.maximum(force.sum(0), 1.0)  # every force is above 1
        return (share * taken).sum(1) / self.enemies
