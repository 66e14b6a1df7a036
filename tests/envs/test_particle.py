from itertools import pairwise

import pytest
import torch

from offmarl.envs.opponents.policy import NetworkPolicy
from offmarl.envs.registry import default_options, describe, listing, make
from offmarl.errors import DataError, UsageError

TASKS = [entry.id for entry in listing() if entry.id.startswith("mpe_") and entry.backend == "offmarl"]
HUNTS = [task for task in TASKS if "tag" in task or "world" in task]
WIDTHS = {
    "mpe_spread": 18,
    "mpe_tag": 16,
    "mpe_spread_omar": 18,
    "mpe_tag_omar": 16,
    "mpe_world_omar": 24,
    "mpe_tag_individual": 16,
    "mpe_targets": 20,
    "mpe_predator_prey_large": 242,
}


def build(task: str, num_envs: int = 3, **kwargs):
    options = kwargs.pop("options", {})
    if task in HUNTS:
        options = {"prey_policy": "flee"} | options
    return make(task, num_envs, options=options, **kwargs)


def random_action(env, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if env.spec.discrete:
        return torch.randint(5, (env.num_envs, env.spec.n_agents), generator=generator)
    shape = (env.num_envs, env.spec.n_agents, env.spec.action_dim)
    return 2 * torch.rand(shape, generator=generator) - 1


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_is_cut_at_the_horizon_and_nothing_is_lost(task: str) -> None:
    env = build(task)
    frame = env.reset(0)
    spec = env.spec
    assert spec.n_agents == describe(task).agents
    assert frame.obs.shape == (3, spec.n_agents, WIDTHS[task])
    for t in range(spec.horizon):
        before = env.entity_positions()
        step = env.step(random_action(env, t))
        assert not step.terminated.any()
        assert step.truncated.all() == (t == spec.horizon - 1)
        torch.testing.assert_close(step.team_reward, step.agent_reward.sum(1))
        column = spec.obs_names[0].index("position_x")
        assert torch.equal(step.successor.position, step.successor.obs[..., column : column + 2])
        if t < spec.horizon - 1:
            assert step.frame is step.successor
    moved = (step.successor.position - before[:, : spec.n_agents]).abs()
    assert moved.max() < 0.2, "the successor goes on from the step before"
    assert (step.frame.position - before[:, : spec.n_agents]).abs().max() > 0.2, "the frame starts afresh"
    assert torch.equal(step.frame.position, env.entity_positions()[:, : spec.n_agents])
    assert not env.entity_velocities().any()


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_decides_everything(task: str) -> None:
    def play(seed: int) -> torch.Tensor:
        env = build(task, options={"prey_policy": "random"} if task in HUNTS else {})
        seen = [env.reset(seed).obs]
        seen += [env.step(random_action(env, t)).frame.obs for t in range(30)]
        return torch.stack(seen)

    assert torch.equal(play(1), play(1))
    assert not torch.equal(play(1)[0], play(2)[0])


@pytest.mark.parametrize("task", TASKS)
def test_spec_rebuilds_the_environment(task: str) -> None:
    options = {"agents": 4, "horizon": 7, "actions": "discrete"}
    spec = build(task, options=options).spec
    again = make(spec.id, backend=spec.backend, options=spec.options)
    assert again.spec == spec
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
    assert spec.horizon == 7
    assert again.reset(0).legal.shape == (1, 4, 5)


@pytest.mark.parametrize("task", TASKS)
def test_homogeneous_agents_observe_alike(task: str) -> None:
    """Names at one column differ at most in the number of the agent that is observed."""
    spec = build(task).spec
    for column in zip(*spec.obs_names, strict=True):
        kinds = {name.split(".")[-1] for name in column}
        subjects = {name.split(".")[0].rstrip("0123456789") for name in column}
        assert len(kinds) == len(subjects) == 1, column


def test_copies_that_end_at_different_times() -> None:
    env = build("mpe_spread", options={"horizon": 5})
    frame = env.reset(0)
    env.set_state(env.entity_positions(), time=torch.tensor([0, 3, 4]))
    ends = []
    for t in range(5):
        step = env.step(random_action(env, t))
        ends.append(step.truncated.tolist())
        same = (step.frame.obs == step.successor.obs).flatten(1).all(1)
        assert torch.equal(same, ~step.truncated)
    assert ends == [
        [False, False, True],
        [False, True, False],
        [False, False, False],
        [False, False, False],
        [True, False, False],
    ]
    assert frame.obs.shape == step.frame.obs.shape

    before = env.entity_positions()
    with pytest.raises(UsageError, match=r"time must be in 0\.\.4"):
        env.set_state(torch.zeros_like(before), time=5)
    assert torch.equal(env.entity_positions(), before), "a state that is refused changes nothing"


def place(env, **where: tuple[float, float]) -> None:
    """Put the named entities there and all others far away, apart from each other."""
    spots = [where.get(entity.name, (50.0 + 10 * k, 50.0)) for k, entity in enumerate(env.entities)]
    env.reset(0)
    env.set_state(torch.tensor([spots]).double())


def rewards_at_rest(env, **where: tuple[float, float]) -> torch.Tensor:
    place(env, **where)
    return env.step(torch.zeros(1, env.spec.n_agents, 2)).agent_reward[0]


def test_omar_spread_reward() -> None:
    env = build("mpe_spread_omar", 1, dtype=torch.float64)
    where = {"agent_0": (0.0, 0.0), "agent_1": (1.0, 0.0), "agent_2": (-1.0, 0.0)}
    where |= {"landmark_0": (0.0, 0.05), "landmark_1": (1.0, 0.5), "landmark_2": (-1.0, 4.0)}
    assert rewards_at_rest(env, **where).tolist() == pytest.approx([10 + 2 + 0.25] * 3)
    place(env, **where | {"agent_1": (0.28, 0.0)})
    rewards = env.step(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])).agent_reward[0]
    assert float(rewards[0]) == float(rewards[1]) == pytest.approx(float(rewards[2]) - 5)


def test_omar_spread_starts_wider_with_four_agents() -> None:
    reach = {
        n: build("mpe_spread_omar", 500, options={"agents": n}).reset(0).position.abs().max() for n in (3, 4)
    }
    assert 0.98 < reach[3] <= 1
    assert 1.98 < reach[4] <= 2


def test_tag_rewards_are_shared_or_individual() -> None:
    where = {
        "predator_0": (0.0, 0.0),
        "predator_1": (0.0, 1.0),
        "predator_2": (0.0, -2.0),
        "prey": (0.1249, 0.0),
    }
    far = [0.1249, (1 + 0.1249**2) ** 0.5, (4 + 0.1249**2) ** 0.5]
    still = {"opponent": lambda obs: torch.zeros(*obs.shape[:2], 2), "dtype": torch.float64}
    shared = rewards_at_rest(build("mpe_tag_omar", 1, **still), **where)
    assert len(set(shared.tolist())) == 1
    assert float(shared[0]) == pytest.approx(-0.1 * sum(far), abs=2e-2), (
        "they were pushed apart before the reward"
    )
    env = build("mpe_tag_individual", 1, **still)
    place(env, **where | {"prey": (0.1, 0.0)})
    reward = env.step(torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])).agent_reward[0]
    distance = torch.linalg.vector_norm(env.entity_positions()[0, :3] - env.entity_positions()[0, 3], dim=-1)
    contact = (distance < 0.125).double()
    torch.testing.assert_close(reward, 10 * contact - 0.1 * distance)


def test_catches_pay_ten_and_world_five() -> None:
    """Both bodies are driven into each other for some steps: the contact lasts into the rewarded state."""
    for task, catch in (("mpe_tag_omar", 10), ("mpe_world_omar", 5), ("mpe_tag", 10)):
        env = build(task, 1, dtype=torch.float64, opponent=lambda obs: torch.tensor([[[-1.0, 0.0]]]).double())
        names = [entity.name for entity in env.entities]
        place(
            env, **{names[0]: (-0.1, 0.0), names[3]: (0.1, 0.0), names[1]: (0.0, 3.0), names[2]: (0.0, -3.0)}
        )
        caught = []
        for _ in range(6):
            step = env.step(torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]))
            distance = torch.linalg.vector_norm(
                env.entity_positions()[0, :3] - env.entity_positions()[0, 3], dim=-1
            )
            touch = float(distance[0]) < env.entities[0].size + env.entities[3].size
            shaping = 0.0 if task == "mpe_tag" else -0.1 * float(distance.sum())
            assert step.agent_reward[0].tolist() == pytest.approx([catch * touch + shaping] * 3)
            caught.append(touch)
        assert any(caught)
        assert not all(caught)


def test_targets_reward_depends_on_the_own_target_only() -> None:
    env = build("mpe_targets", 16, dtype=torch.float64)
    assert env.spec.causes[2] == ("next.agent_2.target.relative_x", "next.agent_2.target.relative_y")
    env.reset(0)
    step = env.step(random_action(env, 0))
    column = env.spec.obs_names[2].index("target.relative_x")
    offset = step.successor.obs[:, :, column : column + 2]
    expected = (1 / torch.linalg.vector_norm(offset, dim=-1)).clamp(max=10)
    torch.testing.assert_close(step.agent_reward, expected)


def test_individual_tag_names_its_causes() -> None:
    spec = build("mpe_tag_individual").spec
    assert spec.causes[1] == ("next.predator_1.prey.relative_x", "next.predator_1.prey.relative_y")
    assert all(cause.removeprefix("next.predator_1.") in spec.obs_names[1] for cause in spec.causes[1])
    assert not spec.shared_reward
    assert build("mpe_tag_omar").spec.shared_reward


def test_forests_are_felt_from_inside() -> None:
    env = build("mpe_world_omar", 1, dtype=torch.float64)
    names = list(env.spec.obs_names[0])
    place(env, predator_0=(0.0, 0.0), predator_1=(3.0, 0.0), forest_1=(0.2, 0.0), forest_0=(-1.0, 0.0))
    obs = env.step(torch.zeros(1, 3, 2)).successor.obs[0]
    assert obs[0, [names.index("in_forest_0"), names.index("in_forest_1")]].tolist() == [-1, 1]
    assert obs[1, -2:].tolist() == [-1, -1]


@pytest.mark.parametrize("task", HUNTS)
def test_sides_can_be_swapped_or_both_learn(task: str) -> None:
    both = build(task, options={"background": "none", "prey": 2})
    assert both.spec.n_agents == 5
    assert [len(group) for group in both.spec.groups] == [3, 2]
    assert both.spec.background == ()
    assert not both.spec.shared_reward
    both.reset(0)
    step = both.step(torch.zeros(3, 5, 2))
    assert step.agent_reward.shape == (3, 5)
    widths = [len(names) for names in both.spec.obs_names]
    assert not step.successor.obs[:, 4, widths[4] :].any()

    hunted = build(task, options={"background": "predators"})
    assert hunted.spec.n_agents == 1
    assert len(hunted.spec.background) == 3
    hunted.reset(0)
    total = sum(hunted.step(torch.zeros(3, 1, 2)).agent_reward.sum() for _ in range(24))
    assert total < 0, "prey that stands still is caught by predators that chase"


@pytest.mark.parametrize("task", HUNTS)
def test_fleeing_beats_chance_against_a_chase(task: str) -> None:
    """Predators that steer at the prey catch a random one more often than one that runs."""

    def caught(policy: str) -> float:
        env = build(task, 128, options={"prey_policy": policy})
        names = list(env.spec.obs_names[0])
        prey = next(entity.name for entity in env.entities if entity.kind == "prey")
        column = names.index(f"{prey}.relative_x")
        frame, total = env.reset(0), 0.0
        for _ in range(25):
            step = env.step((3 * frame.obs[..., column : column + 2]).clamp(-1, 1))
            frame, total = step.frame, total + float(step.agent_reward.mean())
        return total

    assert caught("flee") < caught("random")


def test_opponent_network_from_a_file(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [14, 16, 2]
    layers = [
        (torch.randn(b, a, generator=generator), torch.randn(b, generator=generator))
        for a, b in pairwise(sizes)
    ]
    path = tmp_path / "prey.safetensors"
    NetworkPolicy(layers).save(path)

    def expected(obs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(obs @ layers[0][0].T + layers[0][1])
        return torch.tanh(hidden @ layers[1][0].T + layers[1][1])

    from_file = make("mpe_tag", 4, options={"prey_policy": str(path)})
    from_function = make("mpe_tag", 4, opponent=expected)
    from_file.reset(0), from_function.reset(0)
    for t in range(10):
        a, b = (env.step(random_action(env, t)).successor.obs for env in (from_file, from_function))
        torch.testing.assert_close(a, b)
    assert from_function.spec.options["prey_policy"] == "custom"
    assert from_file.spec.options["prey_policy"] == str(path)

    with pytest.raises(UsageError, match="observes 14 numbers and gives 2, in this task 18 and 2"):
        make("mpe_tag", options={"prey_policy": str(path), "agents": 5})
    NetworkPolicy([layers[0], (torch.zeros(1, 16), torch.zeros(1))]).save(path)
    with pytest.raises(UsageError, match=r"gives 1, in this task 14 and 2 .*, for example 'flee'"):
        make("mpe_tag", options={"prey_policy": str(path)})
    NetworkPolicy([layers[0], (torch.zeros(2, 9), torch.zeros(2))]).save(path)
    with pytest.raises(DataError, match=r"layer_1 has weights \[2, 9\] and biases \[2\]"):
        make("mpe_tag", options={"prey_policy": str(path)})
    path.write_bytes(b"not a network")
    with pytest.raises(DataError, match="not a readable safetensors"):
        make("mpe_tag", options={"prey_policy": str(path)})


def test_actions_outside_the_bounds_are_clipped() -> None:
    a, b = (build("mpe_spread", dtype=torch.float64) for _ in range(2))
    a.reset(0), b.reset(0)
    wild = 3 * random_action(a, 0)
    assert torch.equal(a.step(wild).successor.obs, b.step(wild.clamp(-1, 1)).successor.obs)


@pytest.mark.parametrize("actions", ["force", "buttons", "discrete"])
def test_action_conventions_mean_the_same(actions: str) -> None:
    env = build("mpe_spread", 1, options={"actions": actions}, dtype=torch.float64)
    env.reset(0)
    left_and_up = {
        "force": torch.tensor([[[-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]),
        "buttons": torch.tensor([[[-1.0, 1, -1, -1, -1], [-1, -1, -1, -1, 1], [1, -1, -1, -1, -1]]]),
        "discrete": torch.tensor([[1, 4, 0]]),
    }[actions]
    far = torch.arange(12.0, dtype=torch.float64).view(1, 6, 2) * 5
    env.set_state(far)
    env.step(left_and_up)
    assert env.entity_velocities()[0].tolist() == [[-0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]


def test_mistakes_are_explained() -> None:
    with pytest.raises(UsageError, match="unknown environment 'mpe_spred': did you mean mpe_spread"):
        make("mpe_spred")
    with pytest.raises(UsageError, match="unknown option of mpe_spread 'agnts': did you mean agents"):
        make("mpe_spread", options={"agnts": 3})
    with pytest.raises(UsageError, match="agents=0"):
        make("mpe_spread", options={"agents": 0})
    with pytest.raises(UsageError, match="actions='jump'"):
        make("mpe_spread", options={"actions": "jump"})
    with pytest.raises(UsageError, match="unknown policy of the prey 'fle': did you mean flee"):
        make("mpe_tag", options={"prey_policy": "fle"})
    with pytest.raises(UsageError, match="unknown backend"):
        make("mpe_spread", backend="petingzoo")
    with pytest.raises(UsageError, match="-1 worker processes"):
        make("mpe_tag", backend="pettingzoo", workers=-1)
    with pytest.raises(UsageError, match="there is no opponent"):
        make("mpe_spread", opponent=lambda obs: obs)
    env = build("mpe_spread")
    with pytest.raises(UsageError, match="call reset"):
        env.step(torch.zeros(3, 3, 2))
    env.reset(0)
    with pytest.raises(UsageError, match=r"shape \(3, 3, 5\), expected \(3, 3, 2\)"):
        env.step(torch.zeros(3, 3, 5))
    env = build("mpe_spread", options={"actions": "discrete"})
    env.reset(0)
    for choice in (-1, 5):
        with pytest.raises(UsageError, match=f"actions from {choice} to {choice}, expected 0 to 4"):
            env.step(torch.full((3, 3), choice))


def test_every_listed_environment_can_be_made() -> None:
    for entry in listing():
        if entry.backend != "offmarl":
            continue
        env = build(entry.id, 2)
        defaults = default_options(entry.id)
        resolved = {name for name, value in env.spec.options.items() if defaults[name] != value}
        assert resolved <= {"prey_policy", "landmarks"}
        assert env.reset(0).obs.shape == (2, entry.agents, env.spec.obs_dim)


def test_nothing_leaves_the_device() -> None:
    """On the meta device any read of a value back to the host fails: a step must not need one."""
    from offmarl.envs.particle.world import Entity, World

    world = World(
        [Entity("a", "agent", 0.1, movable=True), Entity("b", "agent", 0.1, movable=True)], 4, device="meta"
    )
    world.step(torch.zeros(2, 2, 4, device="meta"))
    assert world.position.device.type == "meta"


@pytest.mark.parametrize("num_envs", [1, 2])
def test_positions_that_were_seen_do_not_move_with_the_world(num_envs):
    env = make("mpe_tag", num_envs)
    before = env.reset(0).position
    kept = before.clone()
    everything, speeds = env.entity_positions(), env.entity_velocities()
    for _ in range(2):  # the first only gives a velocity
        env.step(torch.ones(num_envs, 3, 2))
    assert torch.equal(before, kept)
    assert not torch.equal(everything, env.entity_positions())
    assert not torch.equal(speeds, env.entity_velocities())
