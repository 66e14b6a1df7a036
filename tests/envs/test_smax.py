"""SMAX against jaxmarl itself. Everything here shares two compilations: ours and jaxmarl's, of 3m."""

import json
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from offmarl.envs.registry import default_options, describe, listing, make
from offmarl.envs.smax import SCENARIOS, SmaxOptions
from offmarl.envs.smax import describe as describe_smax
from offmarl.errors import UsageError
from offmarl.evaluation.rollout import rollout
from offmarl.evaluation.scores import Evaluation, EvaluationReport
from offmarl.evaluation.statistics import bootstrap_interval
from offmarl.streams import stream_seed

pytestmark = pytest.mark.skipif(find_spec("jaxmarl") is None, reason="needs jaxmarl")

COPIES, HORIZON = 8, 30


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Compiled code of these tests goes to a folder of their own, unless JAX was told another."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))


@pytest.fixture(scope="module")
def env():
    with make("smax_3m", COPIES, options={"horizon": HORIZON}) as made:
        yield made


def attack(frame) -> torch.Tensor:
    """Shoot the first enemy in range, otherwise go east, where the enemy comes from; the dead stop."""
    preference = torch.tensor([1, 3, 0, 0, 2, 9, 8, 7])
    return (frame.legal * (preference + 1)).argmax(-1)


def test_every_step_of_whole_battles_is_jaxmarls(env) -> None:
    import jax

    from offmarl.envs.smax_battle import HeuristicEnemySMAX, map_name_to_scenario

    theirs = HeuristicEnemySMAX(scenario=map_name_to_scenario("3m"), max_steps=HORIZON - 1)
    quickly = {
        "xla_backend_optimization_level": "0"
    }  # compiled sooner: one copy is stepped a few hundred times
    key = np.zeros(2, np.uint32)
    reset = jax.jit(theirs.reset).lower(key).compile(compiler_options=quickly)
    stop = dict.fromkeys(theirs.agents, 4)
    step_env = jax.jit(theirs.step_env).lower(key, reset(key)[1], stop).compile(compiler_options=quickly)
    checked = 4
    seeds = [stream_seed(5, "smax", copy) for copy in range(checked)]
    keys, battles, seen = [], [], []
    for seed in seeds:
        key, first = jax.random.split(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32))
        obs, battle = reset(first)
        keys.append(key)
        battles.append(battle)
        seen.append(obs)

    def same(frame, copy) -> None:
        obs, battle = seen[copy], battles[copy]
        ours = frame.obs[copy].numpy()
        np.testing.assert_allclose(ours, [obs[agent] for agent in theirs.agents], atol=1e-5)
        np.testing.assert_allclose(frame.state[copy].numpy(), obs["world_state"], atol=1e-5)
        legal = theirs.get_avail_actions(battle)
        assert np.array_equal(frame.legal[copy].numpy(), [legal[agent] for agent in theirs.agents])
        assert np.array_equal(frame.alive[copy].numpy(), battle.state.unit_alive[:3])
        np.testing.assert_allclose(frame.position[copy].numpy(), battle.state.unit_positions[:3], atol=1e-5)

    frame = env.reset(5)
    ends = wins = 0
    for _ in range(2 * HORIZON):
        action = attack(frame)
        step = env.step(action)
        for copy in range(checked):
            same(frame, copy)
            keys[copy], now, following = jax.random.split(keys[copy], 3)
            choices = {agent: int(action[copy, i]) for i, agent in enumerate(theirs.agents)}
            obs, battle, reward, done, _ = step_env(now, battles[copy], choices)
            seen[copy], battles[copy] = obs, battle
            same(step.successor, copy)
            paid = float(reward["ally_0"])
            assert float(step.team_reward[copy]) == pytest.approx(paid, abs=1e-5)
            assert bool(step.done[copy]) == bool(done["__all__"])
            assert bool(step.won[copy]) == (paid >= 1), "victory is paid 1, and nothing else as much"
            if done["__all__"]:
                ends += 1
                wins += paid >= 1
                everyone = [bool(side.any()) for side in np.split(np.asarray(battle.state.unit_alive), 2)]
                assert bool(step.terminated[copy]) == (not all(everyone))
                key, first = jax.random.split(following)
                keys[copy] = key
                seen[copy], battles[copy] = reset(first)
        frame = step.frame
    assert ends > checked
    assert 0 < wins < ends


def test_the_same_seed_gives_the_same_battles(env) -> None:
    def play(seed: int) -> list[torch.Tensor]:
        frame = env.reset(seed)
        seen = [frame.obs.clone()]
        for _ in range(40):
            frame = env.step(attack(frame)).frame
            seen.append(frame.obs.clone())
        return seen

    first = play(1)
    play(2)
    again = play(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], play(2)[0])
    assert not torch.equal(first[0][0], first[0][1]), "copies differ"


def test_allies_earn_what_their_own_hits_took(env) -> None:
    frame = env.reset(3)
    paid_alone = paid_together = 0
    for t in range(3 * HORIZON):
        action = attack(frame)
        if t % 2:  # only the first ally shoots
            action[:, 1:] = torch.where(action[:, 1:] >= 5, 4, action[:, 1:])
        step = env.step(action)
        torch.testing.assert_close(step.agent_reward.sum(1), step.team_reward, atol=1e-5, rtol=0)
        assert (step.agent_reward >= -1e-6).all()
        shooting = (action >= 5).float()
        plain = ~step.won & (step.team_reward > 0)
        idle = (step.agent_reward * (1 - shooting))[plain]
        assert idle.abs().sum() < 1e-5, "who did not shoot earned nothing"
        paid_alone += int((plain & (shooting.sum(1) == 1)).sum())
        paid_together += int((plain & ((step.agent_reward > 0).sum(1) > 1)).sum())
        bonus = step.agent_reward[step.won]
        assert (bonus >= 1 / 3 - 1e-5).all(), "victory is everybody's"
        frame = step.frame
    assert paid_alone > 5
    assert paid_together > 5


def test_the_dead_can_only_stop_and_names_say_what_is_where(env) -> None:
    frame = env.reset(0)
    spec = env.spec
    state = {name: k for k, name in enumerate(spec.state_names)}
    dead = 0
    for _ in range(HORIZON):
        frame = env.step(attack(frame)).frame
        nobody = ~frame.alive
        dead += int(nobody.sum())
        assert torch.equal(frame.legal.sum(-1)[nobody], torch.ones(int(nobody.sum()), dtype=torch.int64))
        assert frame.legal[..., 4].all()
        for i in range(3):
            living = frame.alive[:, i]
            names = {name: k for k, name in enumerate(spec.obs_names[i])}
            xy = torch.stack([frame.state[:, state[f"ally_{i}.position_{axis}"]] for axis in "xy"], 1)
            torch.testing.assert_close(xy[living], frame.position[:, i][living])
            torch.testing.assert_close(
                frame.obs[:, i, names["health"]], frame.state[:, state[f"ally_{i}.health"]]
            )
            torch.testing.assert_close(
                frame.obs[living, i, names["is_marine"]], torch.ones(int(living.sum()))
            )
            j = (i + 1) % 3
            seen = frame.obs[:, i, names[f"ally_{j}.health"]] > 0
            offset = (frame.position[:, j] - frame.position[:, i]) / 9  # a marine sees 9 far
            there = frame.obs[:, i, names[f"ally_{j}.relative_x"]]
            torch.testing.assert_close(there[seen], offset[seen, 0], atol=1e-5, rtol=0)
    assert dead > 0
    assert make(spec.id, 2, backend=spec.backend, options=spec.options).spec == spec
    owner = dict(zip(spec.state_names, spec.state_owner, strict=True))
    assert owner["ally_2.cooldown"] == owner["ally_2.type"] == 2
    assert owner["enemy_0.health"] == owner["enemy_2.team"] == -1


def test_win_rates_of_a_rollout(env) -> None:
    class Attacker:
        def begin(self, starting, generator) -> None: ...

        def act(self, frame, generator):
            return attack(frame)

    result = rollout(env, Attacker(), seed=0)
    assert result.won is not None
    assert result.won.dtype == torch.bool
    assert torch.equal(result.won, result.team >= 1), "all health and the bonus: 2; less without victory"


def test_wrong_use(env) -> None:
    with pytest.raises(UsageError, match="expected 0 to 7"):
        env.step(torch.full((COPIES, 3), 8))
    with pytest.raises(UsageError, match=r"shape \(8, 2\), expected \(8, 3\)"):
        env.step(torch.zeros(COPIES, 2, dtype=torch.int64))
    with pytest.raises(UsageError, match="call reset before step"):
        make("smax_3m").step(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(UsageError, match="did you mean smax_5m_vs_6m"):
        make("smax_5m_vs_6")
    with pytest.raises(UsageError, match="walls_cause_death"):
        make("smax_3m", options={"wall_cause_death": True})
    with pytest.raises(UsageError, match="there is no opponent to replace"):
        make("smax_3m", opponent=lambda obs: obs)


def test_scenarios_and_widths_are_jaxmarls() -> None:
    from offmarl.envs.smax_battle import HeuristicEnemySMAX  # first: it silences what jaxmarl prints

    theirs_all = sys.modules["jaxmarl.environments.smax.smax_env"].MAP_NAME_TO_SCENARIO
    assert {name: (s.num_allies, s.num_enemies) for name, s in theirs_all.items()} == SCENARIOS
    for name in ("smacv2_5_units", "3s5z_vs_3s6z"):
        for observation in ("unit_list", "conic"):
            theirs = HeuristicEnemySMAX(scenario=theirs_all[name], observation_type=observation)
            spec = describe_smax(f"smax_{name}", SmaxOptions(observation=observation))
            assert spec.obs_dim == theirs.obs_size
            assert spec.state_dim == theirs.state_size
            assert spec.action_dim == theirs.num_ally_actions
    assert not describe_smax("smax_3m", SmaxOptions(state=False)).state_dim


def test_the_listing_needs_no_jax() -> None:
    ids = {entry.id for entry in listing()}
    assert {f"smax_{name}" for name in SCENARIOS} <= ids
    assert describe("smax_2s3z").agents == 5
    assert default_options("smax_3m")["horizon"] == 101
    code = (
        "import sys, json, offmarl.cli, offmarl.envs.registry as r;"
        "r.listing(); r.default_options('smax_3m'); print(json.dumps('jax' in sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) is False


def test_data_is_collected_and_valid(succeed) -> None:
    settings = f"--num-envs {COPIES} --set env.horizon={HORIZON}"  # what is compiled already
    made = succeed(f"collect --env smax_3m --quality random --steps 300 {settings} --name smax_3m/random-v0")
    assert made["transitions"] >= 300
    checked = succeed("data validate")
    assert not checked.get("problems")


def test_win_rates_are_reported() -> None:
    def evaluation(learner: str, win_rate: tuple[float, ...] | None) -> Evaluation:
        known = dict.fromkeys(field.name for field in fields(Evaluation))
        interval = bootstrap_interval([1.0, 2.0], "seeds")
        shown = {"dataset": "smax_3m/random-v0", "learner": learner, "rewards": "team", "episodes": 4}
        return Evaluation(**(known | shown | {"interval": interval, "seeds": (0, 1), "win_rate": win_rate}))

    report = EvaluationReport((evaluation("bc", (0.25, 0.5)),))
    assert dict(zip(report.columns(), report.rows()[0], strict=True))["won"] == "38%"
    assert "won" not in EvaluationReport((evaluation("bc", None),)).columns()
