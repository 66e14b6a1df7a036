"""Self-play on rendered tasks: the replay of states, the league, the choice of a snapshot, and collecting with it."""

import resource

import pytest
import torch

from offmarl.behaviour import qualities
from offmarl.behaviour.collection import CollectRequest, collect_dataset
from offmarl.behaviour.games import play
from offmarl.behaviour.panel import Standing, best, medium, standings
from offmarl.behaviour.players import ByChance, Charging, Learned
from offmarl.behaviour.random import RandomPolicy
from offmarl.behaviour.self_play import (
    ONLINE,
    League,
    own_side,
    revived,
    self_play_config,
    train_self_play,
    training_spec,
)
from offmarl.behaviour.tuning import behaviour_config
from offmarl.behaviour.unit_replay import StateReplay
from offmarl.data.load import load_units
from offmarl.data.record import EpisodeRecorder
from offmarl.data.store import Dataset
from offmarl.data.validate import validate
from offmarl.data.writer import Writer
from offmarl.envs.magent import describe, make_magent
from offmarl.envs.magent_charge import Charge
from offmarl.envs.magent_render import scene
from offmarl.errors import UsageError
from offmarl.reporter import Silent
from offmarl.streams import stream

pytest.importorskip("magent2")

SMALL = {"agents": 4, "horizon": 20}
QUICK = {
    "steps": 20,
    "num_envs": 2,
    "warm_up": 5,
    "exploration_steps": 15,
    "checkpoint_every": 10,
    "evaluation_episodes": 1,
    "batch_size": 16,
    "hidden": [16],
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path))
    return tmp_path


def trained(config, env_id="magent_battle", options=SMALL, seed=0, on_step=None, until=None):
    spec = training_spec(describe(env_id, options))
    with make_magent(env_id, config.num_envs, spec.options, processes=1, views=False) as env:
        return train_self_play(env, config, seed, on_step=on_step, until=until)


def fought(capacity: int, steps: int, agents: int = 9):
    """A replay of charging armies, and the frames, choices and steps that went into it."""
    options = {"agents": agents, "horizon": 40, "background": "none"}
    with make_magent("magent_battle", 2, options, processes=1, views=False) as env:
        replay, policy, generator = StateReplay(env.spec, capacity), Charge(env.spec), stream(0, "test")
        frame, seen = env.reset(0), []
        for _ in range(steps):
            action = policy.act(frame, generator)
            step = env.step(action)
            replay.add(frame, action, step)
            seen.append((frame, action, step))
            frame = step.frame
    return replay, seen


def key(state, next_state):
    return torch.cat([state, next_state]).numpy().tobytes()  # copies begin alike


def test_the_replay_gives_back_exactly_what_living_units_went_through():
    replay, seen = fought(capacity=200, steps=60)
    assert len(replay) == 120
    assert any(bool(step.done.any()) for *_, step in seen), "an end is among it"
    known = {}
    for count, (frame, _, step) in enumerate(seen):
        for copy in range(2):
            known[key(frame.state[copy], step.successor.state[copy])] = (count, copy)
    for side, name in enumerate(("red", "blue")):
        source = replay.groups[name]
        batch = source.sample(300, [stream(1, "draw"), stream(2, "draw")])
        grid, slots = source.renderer.grid, source.renderer.slots
        assert batch.state.shape == (2, 300, grid.state_dim)
        deaths = 0
        for s in range(2):
            for b in range(300):
                count, copy = known[key(batch.state[s, b], batch.next_state[s, b])]
                _, action, step = seen[count]
                unit = int(batch.unit[s, b])
                agent = unit + 9 * side
                number = slots.start + unit
                assert float(scene(grid, batch.state[s, b : b + 1]).health[0, number]) > 0, "only the living"
                assert int(batch.action[s, b]) == int(action[copy, agent])
                assert float(batch.reward[s, b]) == float(step.agent_reward[copy, agent])
                alive = bool(step.successor.alive[copy, agent])
                assert bool(batch.next_alive[s, b]) == alive
                assert bool(batch.terminated[s, b]) == bool(step.terminated[copy])
                deaths += not alive
        assert deaths, "somebody died"


def test_the_replay_draws_the_living_uniformly_and_forgets_the_oldest():
    replay, seen = fought(capacity=40, steps=40)
    assert len(replay) == 40
    source = replay.groups["red"]
    kept = [(frame, step, copy) for frame, _, step in seen[-20:] for copy in range(2)]
    rows = {
        key(frame.state[copy], step.successor.state[copy]): k for k, (frame, step, copy) in enumerate(kept)
    }
    alive = torch.stack([frame.alive[copy, :9] for frame, _, copy in kept])
    assert len(rows) == 40
    assert len(source) == int(alive.sum())
    batch = source.sample(20 * len(source), [stream(0, "draw")])
    drawn = torch.zeros(40, 9)
    for state, after, unit in zip(batch.state[0], batch.next_state[0], batch.unit[0], strict=True):
        drawn[rows[key(state, after)], int(unit)] += 1
    assert (drawn[~alive] == 0).all()
    # 20 draws each are expected; the variance of a uniform law is as large.
    assert drawn[alive].var() == pytest.approx(20, rel=0.35)


def test_the_same_seed_gives_the_same_snapshots_and_stopping_early_the_same_steps():
    config = self_play_config(QUICK)
    taken, stopped = [], []
    first = trained(config, on_step=lambda _, action, __: taken.append(action.clone()))
    again = trained(config)
    assert [one.step for one in first] == [10, 20]
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    trained(config, on_step=lambda _, action, __: stopped.append(action.clone()), until=12)
    assert len(stopped) == 12
    assert all(torch.equal(a, b) for a, b in zip(taken, stopped, strict=False))
    moved = [name for name in first[0].tensors if name.startswith("critic.")]
    assert not torch.equal(first[0].tensors[moved[0]], first[-1].tensors[moved[0]]), "something was learnt"


def test_old_selves_play_one_side_in_their_share_of_the_games():
    league = League(2_000, 2, 0.5, stream(0, "league"))
    everywhere = torch.ones(2_000, dtype=torch.bool)
    league.begin(everywhere)
    assert (league.who == 0).all(), "there is no old self yet"
    league.old += [ByChance(), ByChance(), ByChance()]
    league.begin(everywhere)
    old = league.who > 0
    assert not old.all(1).any(), "the present self plays in every game"
    assert old.any(1).float().mean() == pytest.approx(0.5, abs=0.04)
    assert old[:, 0].float().mean() == pytest.approx(0.25, abs=0.04)
    counts = league.who[old].bincount(minlength=4)[1:]
    assert (counts / counts.sum() - 1 / 3).abs().max() < 0.06
    before = league.who.clone()
    starting = torch.arange(2_000) < 1_000
    league.begin(starting)
    assert torch.equal(league.who[1_000:], before[1_000:]), "nobody is replaced during a game"


def test_games_are_scored_for_both_sides():
    spec = describe("magent_battle", {"agents": 9, "horizon": 60, "background": "none"})
    who = torch.tensor([[0, 1], [1, 0], [1, 1]] * 3)
    outcome = play(spec, [Charging(), ByChance()], who, seed=0)
    assert (outcome.alive[0::3, 0] > outcome.alive[0::3, 1]).all(), "the charge wins on the left"
    assert (outcome.alive[1::3, 1] > outcome.alive[1::3, 0]).all(), "and on the right"
    assert (outcome.episode_return[0::3, 0] > outcome.episode_return[0::3, 1]).all()
    again = play(spec, [Charging(), ByChance()], who, seed=0)
    assert torch.equal(again.alive, outcome.alive)


def test_the_best_wins_by_the_largest_margin():
    table = [
        Standing(10, 5.0, 1.0, enemies_left=0.6, random_margin=0.4, margin=0.1),
        Standing(20, 1.0, 1.0, enemies_left=0.3, random_margin=0.5, margin=0.3),
        Standing(30, 2.0, 0.9, enemies_left=0.1, random_margin=0.6, margin=0.3),
        Standing(40, 9.0, 1.0, enemies_left=0.0, random_margin=0.3),
    ]
    assert best(table) == 2
    assert best([Standing(10, 5.0), Standing(20, 7.0), Standing(30, 6.0)]) == 1


def test_medium_has_killed_half_of_what_the_expert_kills_and_comes_before_it():
    left = [0.9, 0.6, 0.4, 0.0, 0.5]
    table = [
        Standing(10 * k, 0.0, 1.0, share, random_margin=0.9 - share, margin=float(k == 3))
        for k, share in enumerate(left)
    ]
    assert best(table) == 3
    assert medium(table, random_return=-5.0) == 1
    returns = [Standing(10 * k, value) for k, value in enumerate([1.0, 4.0, 9.0, 10.0, 5.5])]
    assert medium(returns, random_return=1.0) == 1


def test_every_snapshot_meets_chance_and_finalists_the_panel():
    config = self_play_config(QUICK | {"finalists": 1})
    spec = describe("magent_battle", SMALL)
    snapshots = trained(config)
    table = standings(spec, config, 0, snapshots)
    assert [row.step for row in table] == [10, 20]
    assert all(0 <= row.random_win_rate <= 1 and 0 <= row.enemies_left <= 1 for row in table)
    assert all(-row.enemies_left <= row.random_margin <= 1 - row.enemies_left for row in table)
    assert sum(row.margin is not None for row in table) == 1
    assert table[best(table)].margin is not None
    assert table == standings(spec, config, 0, snapshots)


def test_settings_of_the_algorithm_stand_beside_those_of_self_play():
    config = self_play_config({"algorithm": "mfq", "scope": "both", "steps": 300, "learning_rate": 3e-3})
    assert config.steps == 300
    assert config.learner == ONLINE | {"scope": "both", "learning_rate": 3e-3}
    with pytest.raises(UsageError, match="unknown setting of behaviour 'bet'"):
        self_play_config({"bet": 3})
    with pytest.raises(UsageError, match=r"behaviour\.beta=-1"):
        self_play_config({"beta": -1})
    with pytest.raises(UsageError, match="unknown algorithm of behaviour 'bc'"):
        self_play_config({"algorithm": "bc"})
    with pytest.raises(UsageError, match=r"behaviour\.steps=10: the first checkpoint comes at step 250"):
        behaviour_config(describe("magent_battle", SMALL), {"steps": 10}).check()


def test_a_recording_of_both_sides_can_be_that_of_one(tmp_path):
    red = describe("magent_battle", SMALL)
    both = training_spec(red)
    frames = []
    with (
        make_magent(both.id, 2, both.options, processes=1, views=False) as env,
        Writer(tmp_path / "log", red, id="test/log-v0") as writer,
    ):
        watch = own_side(red, both, EpisodeRecorder(env, writer))
        frame, policy, generator = env.reset(0), RandomPolicy(both), stream(0, "test")
        for _ in range(20):
            action = policy.act(frame, generator)
            step = env.step(action)
            watch(frame, action, step)
            frames.append((frame, action, step))
            frame = step.frame
    dataset = Dataset.open(tmp_path / "log")
    assert validate(dataset) == []
    stored = dataset.read("agent_reward").view(2, 21, 4)
    expected = torch.stack([step.agent_reward[:, :4] for *_, step in frames], 1)
    assert torch.equal(stored[:, :20], expected)
    assert torch.equal(dataset.read("state").view(2, 21, -1)[:, 0], frames[0][0].state)


def request(**changes) -> CollectRequest:
    return CollectRequest(
        **{
            "env": "magent_battle",
            "transitions": 60,
            "num_envs": 2,
            "env_options": SMALL,
            "behaviour": QUICK,
        }
        | changes
    )


def test_battles_are_collected_in_every_quality(home):
    expert = collect_dataset(request(name="battle/expert-v0"), Silent())
    medium = collect_dataset(request(quality="medium", name="battle/medium-v0"), Silent())
    replay = collect_dataset(
        request(quality="medium-replay", name="battle/replay-v0", num_envs=None), Silent()
    )
    scripted = collect_dataset(request(quality="scripted", name="battle/scripted-v0"), Silent())
    (folder,) = (home / "policies" / "magent_battle").iterdir()
    for dataset in (expert, medium, replay, scripted):
        assert validate(dataset) == []
        assert len(load_units(dataset)) == 1
        assert dataset.spec.n_agents == 4
    assert expert.card.references == medium.card.references
    assert expert.card.references is not None

    # The same behaviour on both sides, on the other side, and with more units than it was trained with.
    for options in ({"background": "none"}, {"background": "red"}, {"agents": 9}):
        moved = request(policy=str(folder / "expert.safetensors"), env_options=SMALL | options, name=None)
        dataset = collect_dataset(moved, Silent())
        assert validate(dataset) == []
        assert [group[0] for group in dataset.spec.groups] == {
            "none": ["red_0", "blue_0"],
            "red": ["blue_0"],
            "blue": ["red_0"],
        }[dataset.spec.options["background"]]
        assert dataset.spec.n_agents == {"none": 8, "red": 4}.get(options.get("background"), 9)


def test_predators_learn_from_random_prey_and_their_policy_takes_more_of_them(home):
    options = {"agents": 4, "horizon": 20}
    dataset = collect_dataset(request(env="magent_pursuit", env_options=options), Silent())
    assert validate(dataset) == []
    (path,) = (home / "policies" / "magent_pursuit").rglob("expert.safetensors")
    more = request(
        env="magent_pursuit", env_options=options | {"agents": 8}, policy=str(path), name="p/more-v0"
    )
    assert collect_dataset(more, Silent()).spec.n_agents == 8
    wrong = request(policy=str(path), name="p/wrong-v0")
    with pytest.raises(UsageError, match="of a kind that was not trained"):
        collect_dataset(wrong, Silent())


def test_both_sides_of_a_pursuit_can_learn(home, monkeypatch):
    options = {"agents": 4, "horizon": 20, "background": "none"}
    compared = []

    def watched(table, random_return):
        compared.append(random_return)
        return medium(table, random_return)

    monkeypatch.setattr(qualities, "medium", watched)
    dataset = collect_dataset(request(env="magent_pursuit", env_options=options), Silent())
    assert validate(dataset) == []
    assert len(dataset.spec.groups) == 2
    # Snapshots are scored by what predators earn of random prey, and medium lies half-way from random predators.
    alone = {**options, "background": "prey"}
    with make_magent("magent_pursuit", 16, alone, views=False) as env:
        assert compared == [qualities.random_reference(env, 0)]


def cpu_seconds() -> float:
    """Of this process and of the workers that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@pytest.mark.slow
def test_two_minutes_of_a_core_make_an_army_that_beats_chance():
    spec = describe("magent_battle", {"agents": 64})
    config = behaviour_config(spec, {})
    before = cpu_seconds()
    snapshots = trained(config, options={"agents": 64})
    table = standings(spec, config, 0, snapshots)
    used = cpu_seconds() - before
    played = training_spec(spec)
    expert = Learned(revived(played, config, 0, snapshots[best(table)], "cpu"), 0.05)
    who = torch.tensor([[0, 1]] * 10 + [[1, 0]] * 10)
    outcome = play(played, [expert, ByChance()], who, seed=5)
    mine = torch.cat([outcome.alive[:10, 0], outcome.alive[10:, 1]])
    enemies = torch.cat([outcome.alive[:10, 1], outcome.alive[10:, 0]])
    print(f"{used:.0f} s, won {(mine > enemies).float().mean():.2f}, enemies left {enemies.mean():.2f}")
    assert (mine > enemies).float().mean() >= 0.9
    assert enemies.mean() <= 0.25
    assert used <= 120


@pytest.mark.slow
def test_predators_that_learnt_among_60_hunt_as_well_among_540():
    spec = describe("magent_pursuit", {})
    config = behaviour_config(spec, {})
    snapshots = trained(config, "magent_pursuit", {})
    table = standings(spec, config, 0, snapshots)
    expert = Learned(revived(spec, config, 0, snapshots[best(table)], "cpu"), 0.05)
    few = play(spec, [expert], torch.zeros(8, 1, dtype=torch.int64), seed=5)
    many = play(
        describe("magent_pursuit", {"agents": 180}), [expert], torch.zeros(2, 1, dtype=torch.int64), seed=5
    )
    earned = [float(outcome.episode_return.mean()) / spec.horizon for outcome in (few, many)]
    print(f"reward of an agent and step: {earned[0]:.2f} of 20, {earned[1]:.2f} of 180")
    assert earned[0] >= 0.25
    assert earned[1] >= 0.7 * earned[0]
