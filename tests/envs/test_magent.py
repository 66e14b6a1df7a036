import statistics
import time
from importlib import metadata

import numpy as np
import pytest
import torch

from offmarl.envs import magent
from offmarl.envs.base import EnvSpec, Frame
from offmarl.envs.magent import describe, grid_of, other_side
from offmarl.envs.magent_charge import Charge
from offmarl.envs.magent_render import render, renderers, scene
from offmarl.envs.registry import make
from offmarl.errors import DataError, UsageError
from offmarl.streams import stream_seed

pytest.importorskip("magent2")

BOTH = {"background": "none"}
GAMES = {
    "battle": ("magent_battle", {"agents": 25, "horizon": 60, **BOTH}),
    "battle without minimap": (
        "magent_battle",
        {"agents": 20, "map_size": 25, "horizon": 45, "minimap": False, **BOTH},
    ),
    "pursuit": ("magent_pursuit", {"agents": 8, "horizon": 20, **BOTH}),
    "gather": ("magent_gather", {"agents": 60, "map_size": 80, "horizon": 20}),
}


class Anything:
    """Uniform choices, of those that each agent has."""

    def __init__(self, spec: EnvSpec):
        self._choices = torch.tensor([len(names) for names in spec.action_names])

    def act(self, frame: Frame, generator: torch.Generator) -> torch.Tensor:
        copies = frame.obs.shape[0]
        return (torch.rand(copies, len(self._choices), generator=generator) * self._choices).long()


def play(env, seed: int = 0, steps: int | None = None):
    """Frames, steps and what was done, of `steps` steps (by default until an episode has ended in every copy)."""
    policy = Anything(env.spec) if env.spec.id == "magent_gather" else Charge(env.spec)
    generator = torch.Generator().manual_seed(seed)
    frame, history = env.reset(seed), []
    ended = torch.zeros(env.num_envs, dtype=torch.bool)
    while len(history) < steps if steps else not bool(ended.all()):
        action = policy.act(frame, generator)
        step = env.step(action)
        history.append((frame, action, step))
        ended |= step.done
        frame = step.frame
    return history


@pytest.fixture(scope="module")
def battle():
    env_id, options = GAMES["battle"]
    with make(env_id, 2, options=options, workers=1) as env:
        yield env


@pytest.mark.parametrize("game", GAMES)
def test_whole_games_are_rendered_exactly(game: str) -> None:
    env_id, options = GAMES[game]
    with make(env_id, 2, options=options, workers=1) as env:
        history = play(env)
    spec = env.spec
    worst = max(
        float((render(spec, seen.state) - seen.obs).abs().max())
        for frame, _, step in history
        for seen in (frame, step.successor)
    )
    assert worst <= 1e-5
    assert max(float(frame.obs.abs().max()) for frame, *_ in history) > 0.9, "there was something to see"
    if env_id == "magent_battle":
        dead = sum(int((~step.successor.alive).sum()) for *_, step in history if bool(step.done.any()))
        assert dead > 20, "a game in which few die shows little"


@pytest.mark.parametrize(
    ("task", "module", "arguments", "options"),
    [
        ("magent_battle", "battle_v4", {"map_size": 40}, {"agents": 64, **BOTH}),
        ("magent_pursuit", "adversarial_pursuit_v4", {"map_size": 40}, {"agents": 20, **BOTH}),
        ("magent_gather", "gather_v5", {}, {}),
    ],
)
def test_maps_and_rules_are_those_of_magent2(task: str, module: str, arguments: dict, options: dict) -> None:
    theirs = getattr(__import__(f"magent2.environments.{module}").environments, module).parallel_env(
        minimap_mode=True, extra_features=True, **arguments
    )
    with make(task, 1, options=options) as env:
        seed = np.random.SeedSequence([stream_seed(3, "magent", 0), 0]).generate_state(1)[0] >> 1
        frame, (seen, _) = env.reset(3), theirs.reset(seed=int(seed))
        # Its layer counts the teams before it has put them on the map, and would give both the same actions.
        theirs.team_sizes = [theirs.env.get_num(handle) for handle in theirs.handles]
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            assert len(theirs.agents) == env.spec.n_agents
            for i, agent in enumerate(theirs.agents):
                view, features = _split(env.spec, i, frame.obs[0, i])
                expected = seen[agent]
                np.testing.assert_array_equal(view, expected[..., : view.shape[-1]])
                reward = env.spec.obs_names[i].index("last_reward") - view.size
                # magent2's own layer looks before the dead are cleared, when the reward is not the last one yet.
                np.testing.assert_array_equal(
                    np.delete(features, reward), np.delete(expected[0, 0, view.shape[-1] :], reward)
                )
            action = Anything(env.spec).act(frame, generator)
            if task == "magent_gather":  # where a hit kills, and magent2's layer still shows the dead
                action %= sum(name.startswith("move") for name in env.spec.action_names[0])
            step = env.step(action)
            joint = {agent: int(action[0, i]) for i, agent in enumerate(theirs.agents)}
            seen, rewards, *_ = theirs.step(joint)
            np.testing.assert_allclose(step.agent_reward[0], list(rewards.values()), atol=1e-6)
            frame = step.frame


def _split(spec: EnvSpec, agent: int, obs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    names = spec.obs_names[agent]
    cells = [name for name in names if name.startswith("view_")]
    channels = len({name.partition(".")[2] for name in cells})
    side = int((len(cells) // channels) ** 0.5)
    return obs[: len(cells)].view(side, side, channels).numpy(), obs[len(cells) : len(names)].numpy()


def test_a_seed_decides_a_game_however_many_workers_play_it(battle) -> None:
    env_id, options = GAMES["battle"]
    mine = play(battle, seed=5, steps=30)
    with make(env_id, 2, options=options, workers=2) as other:
        theirs = play(other, seed=5, steps=30)
    for (_, _, one), (_, _, two) in zip(mine, theirs, strict=True):
        assert torch.equal(one.frame.state, two.frame.state)
        assert torch.equal(one.agent_reward, two.agent_reward)
    assert not torch.equal(mine[-1][2].frame.state[0], mine[-1][2].frame.state[1]), "copies differ"


def test_the_dead_see_nothing_and_earn_nothing_but_are_paid_for_their_last_step(battle) -> None:
    for frame, _, step in play(battle):
        before, after = frame.alive, step.successor.alive
        assert not (after & ~before).any(), "nobody comes back to life within an episode"
        assert not step.agent_reward[~before].any()
        died = before & ~after
        # A dying agent is paid the penalty of death alone, and for a hit that it landed before.
        paid = step.agent_reward[died]
        assert torch.isclose(paid[:, None], torch.tensor([-0.1, 0.1]), atol=1e-6).any(1).all()
        assert not step.successor.obs[~after].any()
        assert (step.successor.state[:, battle.spec.state_names.index("red_0.health")] >= 0).all()


def test_annihilation_is_terminal_and_time_is_not(battle) -> None:
    history = play(battle)
    ends = [step for *_, step in history if bool(step.done.any())]
    assert ends
    for step in ends:
        red, blue = step.successor.alive[:, :25].any(1), step.successor.alive[:, 25:].any(1)
        assert torch.equal(step.terminated, step.done & ~(red & blue))
        assert torch.equal(step.won, step.terminated & red)
        assert step.frame.alive[step.done].all(), "the next game has begun"
        assert not torch.equal(step.frame.state[step.done], step.successor.state[step.done])
    with make("magent_battle", 1, options={"agents": 2, "horizon": 3}, workers=1) as env:
        env.reset(0)
        flags = [env.step(torch.full((1, 2), 6)) for _ in range(3)]
    assert [bool(step.truncated) for step in flags] == [False, False, True]
    assert not any(bool(step.terminated) for step in flags)


def test_one_side_learns_against_a_policy_that_is_shown_what_its_side_sees() -> None:
    class Watching(Charge):
        def __init__(self, spec: EnvSpec):
            super().__init__(spec)
            self.frames: list[Frame] = []

        def act(self, frame: Frame, generator: torch.Generator) -> torch.Tensor:
            self.frames.append(frame)
            return super().act(frame, generator)

    options = {"agents": 6, "horizon": 50}
    theirs = other_side(describe("magent_battle", options))
    assert theirs.agents[0] == "blue_0"
    assert theirs.background[0] == "red_0"
    opponent = Watching(theirs)
    with make("magent_battle", 2, options=options, opponent=opponent, workers=1) as env:
        assert env.spec.agents == theirs.background
        assert env.spec.options["opponent"] == "custom"
        env.reset(0)
        stay = torch.full((2, 6), env.spec.action_names[0].index("move_+0_+0"))
        steps = [env.step(stay) for _ in range(50)]
    for frame in opponent.frames:
        assert torch.equal(render(theirs, frame.state), frame.obs)
    assert any(bool(step.terminated.any()) for step in steps), "who stands still is killed"
    assert not any(bool(step.won.any()) for step in steps)
    with make("magent_battle", 2, options=options, opponent=lambda obs: torch.full(obs.shape[:2], 6)) as env:
        first, last = env.reset(0), env.step(stay).frame
    assert torch.equal(first.position, last.position)
    with pytest.raises(UsageError, match="no opponent to replace"):
        make("magent_battle", options=BOTH, opponent=opponent)
    with pytest.raises(UsageError, match="that is nobody: leave it out"):
        make("magent_battle", options={**BOTH, "opponent": "charge"})


def test_groups_of_different_choices_have_legal_ones() -> None:
    with make("magent_pursuit", 1, options={"agents": 2, "prey": 2, **BOTH}, workers=1) as env:
        frame = env.reset(0)
        assert env.spec.groups == (("predator_0", "predator_1"), ("prey_0", "prey_1"))
        assert frame.legal.sum(-1).tolist() == [[13, 13, 9, 9]]
        with pytest.raises(UsageError, match="choice 9 of agent 2 does not exist, expected 0 to 8"):
            env.step(torch.tensor([[12, 12, 9, 0]]))


def test_neighbours_are_those_in_view_and_counts_are_of_what_they_did(battle) -> None:
    history = play(battle, steps=25)
    state = torch.cat([frame.state for frame, *_ in history[5:]])
    for name, renderer in renderers(battle.spec).items():
        seen = scene(renderer.grid, state)
        near = renderer.neighbours(state)  # [B, 25, 50]
        # The view's channel of one's own team shows the same, and the viewer in the middle.
        obs = renderer.observations(state)[..., : 13 * 13 * 7].unflatten(-1, (13, 13, 7))
        alive = seen.alive[:, renderer.slots].float()
        assert torch.equal(near.sum(-1), (obs[..., 1].sum((-1, -2)) - alive).long()), name
        both = renderer.neighbours(state, scope="both")
        assert torch.equal(
            both.sum(-1), (obs[..., 1].sum((-1, -2)) + obs[..., 4].sum((-1, -2)) - alive).long()
        )
        assert torch.equal(
            renderer.neighbours(state, radius=2.0) & near, renderer.neighbours(state, radius=2.0)
        )
        counts = renderer.action_counts(state, scope="both")
        did = [(both & (seen.action == k).unsqueeze(1)).sum(-1) for k in range(21)]
        assert torch.equal(counts, torch.stack(did, -1).float())
        assert counts.sum() > 0
        unit = torch.randint(25, (len(state), 3))
        chosen = unit.unsqueeze(-1).expand(-1, -1, 21)
        assert torch.equal(renderer.action_counts(state, unit, "both"), counts.gather(1, chosen))


def test_single_views_are_those_of_everybody(battle) -> None:
    frame = play(battle, steps=25)[-1][0]
    renderer = renderers(battle.spec)["blue"]
    unit = torch.tensor([24, 3])
    views, features = renderer.views(frame.state, unit), renderer.features(frame.state, unit)
    assert views.shape == (2, 13, 13, 7)
    seen = torch.cat([views.flatten(1), features], 1)
    assert torch.equal(seen, frame.obs[torch.arange(2), 25 + unit])


@pytest.mark.parametrize("task", ["magent_battle", "magent_pursuit", "magent_gather"])
def test_many_units_are_cut_out_of_one_map(task: str) -> None:
    options = {"magent_gather": {"agents": 20, "map_size": 80}, "magent_pursuit": {"agents": 6, **BOTH}}
    with make(task, 3, options=options.get(task, {"agents": 16, **BOTH}), workers=1) as env:
        state = play(env, steps=30)[-1][0].state
        known = renderers(env.spec).values()
    for renderer in known:
        alive = scene(renderer.grid, state).alive[:, renderer.slots]
        sample, unit = alive.nonzero(as_tuple=True)
        views = renderer.views_of_many(state, sample, unit)
        assert torch.equal(views, renderer.views(state[sample], unit))
        assert torch.equal(renderer.features(state, unit, sample), renderer.features(state[sample], unit))


def test_rewards_of_the_paper_pay_kills_and_not_hits() -> None:
    paid = {}
    for rewards in ("magent2", "paper"):
        options = {"agents": 12, "horizon": 30, "rewards": rewards, **BOTH}
        with make("magent_battle", 2, options=options, workers=1) as env:
            rows = torch.cat([step.agent_reward[frame.alive] for frame, _, step in play(env, steps=30)])
        paid[rewards] = {round(float(value), 3) for value in rows.unique()}
    assert 0.095 in paid["magent2"]
    assert paid["paper"] <= {-0.005, -0.105, -0.1, 4.895}
    assert 4.895 in paid["paper"]


@pytest.mark.parametrize(
    ("task", "options", "smaller"),
    [
        ("magent_battle", {"agents": 64}, 39),
        ("magent_pursuit", {"agents": 20}, 23),
        ("magent_gather", {"agents": 300}, 80),
    ],
)
def test_a_map_that_is_too_small_says_which_is_not(task: str, options: dict, smaller: int) -> None:
    with pytest.raises(UsageError, match=r"do not fit on a map of .*, the smallest is \d+") as told:
        make(task, options={**options, "map_size": smaller})
    least = int(str(told.value).partition("the smallest is ")[2].partition(" ")[0])
    assert grid_of(task, {**options, "map_size": least}).map_size == least
    with pytest.raises(UsageError, match="do not fit"):
        grid_of(task, {**options, "map_size": least - 1})


@pytest.mark.parametrize("agents", [1, 2, 12, 25, 64, 100, 399, 400])
def test_armies_of_every_size_fit_on_their_map(agents: int) -> None:
    grid = grid_of("magent_battle", {"agents": agents})
    cells = np.concatenate([group.places for group in grid.groups])
    assert len({tuple(cell) for cell in cells}) == 2 * agents
    assert cells.min() >= 1
    assert cells.max() <= grid.map_size - 2, "magent2 lets nobody stand beyond"
    assert grid.map_size == {64: 40, 100: 50, 400: 100}.get(agents, grid.map_size)


def test_a_missing_or_another_magent2_is_refused_in_one_line(monkeypatch) -> None:
    spec = describe("magent_battle", {})
    with pytest.raises(DataError, match=r"this is data of magent2 0\.2\.0"):
        render(spec.model_copy(update={"versions": {"magent2": "0.2.0"}}), torch.zeros(1, spec.state_dim))
    monkeypatch.setattr(magent, "version", lambda name: "0.9.0")
    with pytest.raises(UsageError, match=r"follows magent2 0\.3\.4, 0\.9\.0 is installed"):
        make("magent_battle")

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(magent, "version", missing)
    with pytest.raises(UsageError, match=r'not installed: pip install "offmarl\[magent\]"'):
        make("magent_pursuit")


def test_states_of_another_map_are_refused() -> None:
    spec = describe("magent_battle", {"agents": 12})
    smaller = spec.model_copy(update={"options": {**spec.options, "agents": 10}})
    with pytest.raises(DataError, match="this is data of another map"):
        renderers(smaller)


def test_a_spec_of_hundreds_is_written_once_a_group() -> None:
    spec = describe("magent_pursuit", {"agents": 80, **BOTH})
    text = spec.model_dump_json()
    assert len(text) < 200_000
    assert EnvSpec.model_validate_json(text) == spec


def test_rendering_a_batch_at_once_is_worth_it() -> None:
    spec = describe("magent_battle", {"agents": 64})
    renderer = renderers(spec)["red"]
    state = torch.rand(128, spec.state_dim)
    for name in ("x", "y"):
        columns = renderer.grid.columns[name]
        state[:, columns] = (state[:, columns] * 38).floor() + 1
    unit = torch.arange(128) % 64

    def seconds(work) -> float:
        work()
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    together = seconds(lambda: renderer.views(state, unit))
    apart = seconds(lambda: [renderer.views(state[k : k + 1], unit[k : k + 1]) for k in range(128)])
    assert apart > 8 * together
