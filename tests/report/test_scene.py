import numpy as np
import pytest
import torch

from offmarl.data.store import Dataset
from offmarl.envs.base import EnvSpec
from offmarl.envs.registry import make
from offmarl.report.scene import scene_of


def played(env_id: str, steps: int = 12, **options):
    """Frames of a random episode, and where the environment says that everything is: [T, M, 2]."""
    env = make(env_id, 1, options=options)
    frames, truth = [env.reset(3)], [env.entity_positions()[0]]
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        action = torch.rand(1, env.spec.n_agents, env.spec.action_dim, generator=generator) * 2 - 1
        frames.append(env.step(action).successor)
        truth.append(env.entity_positions()[0])
    obs, position = (
        np.stack([getattr(frame, name)[0].numpy() for frame in frames]) for name in ("obs", "position")
    )
    return env, obs, position, torch.stack(truth).numpy()


@pytest.mark.parametrize("env_id", ["mpe_spread", "mpe_tag", "mpe_world_omar", "mpe_targets"])
def test_every_body_stands_where_the_environment_says_and_is_as_large(env_id):
    env, obs, position, truth = played(env_id)
    scene = scene_of(env.spec, position, obs)
    entities = {entity.name: (k, entity) for k, entity in enumerate(env.entities)}
    assert len(scene.bodies) == len(env.entities)
    for index, body in enumerate(scene.bodies):
        name = body.name if body.owner is None else f"target_{body.owner}"
        k, entity = entities[name]
        np.testing.assert_allclose(scene.position[:, index], truth[:, k], atol=1e-5)
        assert body.radius == entity.size
        assert body.kind == ("agent" if name in env.spec.agents else entity.kind)


def test_what_is_chased_lies_on_top_and_forests_below():
    env, obs, position, _ = played("mpe_world_omar")
    scene = scene_of(env.spec, position, obs)
    kinds = [scene.bodies[body].kind for body in scene.order()]
    assert kinds == ["forest"] * 2 + ["obstacle"] + ["food"] * 2 + ["agent"] * 3 + ["prey"]


def test_limits_hold_everything_in_a_square():
    env, obs, position, truth = played("mpe_tag")
    left, right, bottom, top = scene_of(env.spec, position, obs).limits
    assert right - left == pytest.approx(top - bottom)
    sizes = np.array([entity.size for entity in env.entities])[None, :]
    assert left < (truth[..., 0] - sizes).min()
    assert top > (truth[..., 1] + sizes).max()


def battle(**changes) -> EnvSpec:
    """Two allies and an enemy, of whom only a state in other units tells."""
    names = ("health", "position_x", "position_y")
    units = ("ally_0", "ally_1", "enemy_0")
    values = {
        "id": "battle",
        "agents": units[:2],
        "groups": (units[:2],),
        "action_type": "discrete",
        "obs_names": (("enemy_0.relative_x", "enemy_0.relative_y"),) * 2,
        "action_names": (("stop",),) * 2,
        "state_names": tuple(f"{unit}.{name}" for unit in units for name in names),
        "horizon": 10,
    }
    return EnvSpec(**{**values, **changes})


def test_positions_of_the_state_are_translated_to_the_units_of_the_agents():
    generator = np.random.default_rng(0)
    position = generator.uniform(0, 32, (6, 2, 2))
    enemy = generator.uniform(0, 32, (6, 2))
    state = np.zeros((6, 9))
    state[:, [1, 2]], state[:, [4, 5]], state[:, [7, 8]] = (
        position[:, 0] / 32,
        position[:, 1] / 32,
        enemy / 32,
    )
    state[:, 6] = [1, 1, 0.5, 0.1, 0, 0]  # the enemy dies
    alive = np.ones((6, 2), bool)
    alive[4:, 0] = False
    scene = scene_of(battle(), position, np.zeros((6, 2, 2)), state, alive)
    assert [body.kind for body in scene.bodies] == ["agent", "agent", "enemy"]
    np.testing.assert_allclose(scene.position[:4, 2], enemy[:4], atol=1e-9)
    assert np.isnan(scene.position[4:, 2]).all()  # dead
    assert np.isnan(scene.position[4:, 0]).all()
    assert np.isfinite(scene.position[:4, :2]).all()


def test_offsets_in_other_units_than_positions_are_not_drawn():
    names = tuple(
        (f"ally_{1 - k}.relative_x", f"ally_{1 - k}.relative_y", "enemy_0.relative_x", "enemy_0.relative_y")
        for k in range(2)
    )
    position = np.random.default_rng(0).uniform(0, 32, (5, 2, 2))
    between = position[:, 1] - position[:, 0]
    obs = np.ones((5, 2, 4))
    obs[:, 0, :2], obs[:, 1, :2] = between, -between
    obs[:, 1, 2:] = 1 - between  # both see the enemy in one place
    spec = battle(obs_names=names, state_names=())
    assert len(scene_of(spec, position, obs).bodies) == 3
    obs[..., :2] /= 9  # a share of what can be seen, as SMAX has it
    assert len(scene_of(spec, position, obs).bodies) == 2


def test_bodies_that_nobody_sees_are_nowhere():
    position = np.random.default_rng(0).uniform(0, 4, (5, 2, 2))
    obs = np.ones((5, 2, 2))
    obs[2:] = 0
    obs[:2, 1] = 1 + position[:2, 0] - position[:2, 1]
    scene = scene_of(battle(state_names=()), position, obs)
    assert np.isfinite(scene.position[:2, 2]).all()
    assert np.isnan(scene.position[2:, 2]).all()


def test_stored_positions_give_the_same_scene(random_dataset):
    with Dataset.open(random_dataset("mpe_tag", 60, 2)) as dataset:
        rows = slice(0, 26)
        scene = scene_of(
            dataset.spec, dataset.read("position", rows).numpy(), dataset.read("obs", rows).numpy()
        )
    assert [body.name for body in scene.bodies][3:] == ["landmark_0", "landmark_1", "agent_0"]
    assert np.ptp(scene.position[:, 3:5], axis=0).max() < 1e-5  # obstacles do not move


def test_agents_of_a_state_alone_are_found_in_it():
    units = ("red_0", "red_1", "blue_0")
    names = tuple(f"{unit}.{quantity}" for quantity in ("x", "y", "health") for unit in units)
    spec = battle(agents=units[:2], groups=(units[:2],), background=units[2:], state_names=names)
    state = np.array([[1, 2, 3, 4, 5, 6, 1, 1, 1], [2, 3, 4, 5, 6, 7, 1, 0, 1]], float)
    scene = scene_of(spec, None, None, state)
    assert [(body.name, body.kind) for body in scene.bodies] == [
        ("red_0", "agent"),
        ("red_1", "agent"),
        ("blue_0", "enemy"),
    ]
    np.testing.assert_allclose(scene.position[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_allclose(scene.position[1], [[2, 5], [np.nan, np.nan], [4, 7]])  # red_1 died
    assert scene_of(spec, None, None, None) is None
    elsewhere = battle(state_names=("red_0.health",))
    assert scene_of(elsewhere, None, None, np.ones((2, 1))) is None
