"""Off-policy evaluation on toys whose values are known exactly.

The chain: two steps, two agents with two choices each. Who both choose 1 at first come to state 1. The team is paid
a_0 in state 0, and 3 + a_0 + 2 a_1 in state 1. Observations tell the state and the step.
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

from offmarl.behaviour.wrappers import FreeRiders, NoisyPolicy
from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec, Frame
from offmarl.errors import DataError, UsageError
from offmarl.evaluation.ope.config import OpeConfig
from offmarl.evaluation.ope.coverage import coverage
from offmarl.evaluation.ope.estimators import (
    ESTIMATORS,
    Judgement,
    Question,
    require_possible,
    resamples,
    usual,
)
from offmarl.evaluation.ope.fitted_q import fitted_q
from offmarl.evaluation.ope.importance import cloned_probability, weighted_importance_sampling
from offmarl.evaluation.ope.logged import Logged, policy_actions
from offmarl.evaluation.ope.offline import _estimate
from offmarl.evaluation.ope.ranking import Candidate, accuracies, regret, spearman
from offmarl.learners.registry import make_learner
from offmarl.streams import stream

EPISODES = 400
CHAIN_VALUES = [
    3.5,
    0.0,
    1.0,
]  # of always 1, always 0, and 1 by the first and 0 by the second agent; per agent
FIT = OpeConfig(steps=500, learning_rate=3e-3, batch_size=128)


def toy(n_agents: int, obs_dim: int, horizon: int, choices: int | None = 2) -> EnvSpec:
    agents = tuple(f"agent_{i}" for i in range(n_agents))
    return EnvSpec(
        id="toy",
        agents=agents,
        groups=(agents,),
        action_type="continuous" if choices is None else "discrete",
        obs_names=(tuple(f"o{i}" for i in range(obs_dim)),) * n_agents,
        action_names=(tuple(f"a{i}" for i in range(choices or 1)),) * n_agents,
        horizon=horizon,
    )


def table(spec: EnvSpec, obs: Tensor, action: Tensor, reward: Tensor) -> Transitions:
    """Episodes that all end by the time limit: [E, T + 1, N, O], [E, T + 1, N(, A)], [E, T + 1]."""
    E, rows = reward.shape
    truncated = torch.zeros(E, rows)
    truncated[:, -2] = 1
    arrays = {
        "obs": obs.flatten(0, 1),
        "action": action.flatten(0, 1).float(),
        "team_reward": reward.flatten(),
        "terminated": torch.zeros(E * rows),
        "truncated": truncated.flatten(),
    }
    return Transitions.from_arrays(spec, arrays, torch.arange(E + 1) * rows)


def chain(action: Tensor) -> Transitions:
    """The chain as `action` [E, 2, 2] goes through it."""
    E = len(action)
    obs, reward, state = torch.zeros(E, 3, 2, 2), torch.zeros(E, 3), torch.zeros(E, dtype=torch.int64)
    for t in range(2):
        obs[:, t, :, 0], obs[:, t, :, 1] = state[:, None].float(), float(t)
        reward[:, t] = action[:, t, 0] + state * (3 + 2 * action[:, t, 1])
        state = action[:, t].prod(1)
    obs[:, 2, :, 0], obs[:, 2, :, 1] = state[:, None].float(), 2.0
    return table(toy(2, 2, 2), obs, torch.cat([action, torch.zeros(E, 1, 2)], dim=1), reward)


def policies(rows: int) -> Tensor:
    """[3, R, 2]: those of CHAIN_VALUES."""
    return torch.tensor([[1, 1], [0, 0], [1, 0]])[:, None].expand(3, rows, 2)


@pytest.fixture(scope="module")
def logged() -> Logged:
    action = torch.randint(0, 2, (EPISODES, 2, 2), generator=stream(0, "test"))
    transitions = chain(action)
    return Logged(transitions, policies(len(transitions.row)), torch.full((3 * EPISODES, 2), 0.5))


def test_fitted_q_knows_a_chain_and_the_datas_own_policy(logged):
    found = fitted_q(logged, FIT)
    assert found.value.mean(1).tolist() == pytest.approx(CHAIN_VALUES, abs=0.05)
    assert float(found.behaviour.mean()) == pytest.approx(float(logged.returns().mean()), abs=0.05)
    assert int(found.held_out.sum()) == EPISODES // 10


def test_fitted_q_knows_a_bandit_of_continuous_actions():
    E, draws = 1_000, stream(0, "bandit")
    action = torch.rand(E, 2, 3, 1, generator=draws) * 2 - 1  # three agents, one step
    obs = torch.randn(E, 2, 3, 1, generator=draws)
    reward = torch.zeros(E, 2)
    reward[:, 0] = (obs[:, 0, :, 0] * action[:, 0, :, 0]).sum(1) + 6
    transitions = table(toy(3, 1, 1, None), obs, action, reward)
    seen = transitions.column("obs")
    logged = Logged(transitions, torch.stack([seen.sign() / 2, -seen.sign() / 2, torch.zeros_like(seen)]))
    expected = 2 + np.array([0.5, -0.5, 0.0]) * float(obs[:, 0].abs().mean())
    for scope in ("team", "agents"):
        found = fitted_q(logged, FIT, scope)
        assert found.value.mean(1).tolist() == pytest.approx(expected, abs=0.07), scope


def test_an_agent_is_worth_the_same_whoever_stands_beside_it_and_wherever_it_stands(logged):
    few = OpeConfig(steps=30)
    order, swapped = [2, 0, 1], [1, 0]
    rows = torch.arange(len(logged.transitions.row))
    obs, action = (logged.transitions.column(name).view(EPISODES, 3, 2, -1) for name in ("obs", "action"))
    reward = logged.transitions.column("team_reward").view(EPISODES, 3)
    turned = table(logged.transitions.spec, obs[:, :, swapped], action[:, :, swapped, 0], reward)
    for scope in ("team", "agents"):
        once = fitted_q(logged, few, scope).value
        again = fitted_q(Logged(logged.transitions, logged.action[order]), few, scope).value
        assert torch.allclose(again, once[order], atol=1e-5), scope
        alone = fitted_q(logged.of(slice(1, 2)), few, scope).value
        assert torch.allclose(alone[0], once[1], atol=1e-5), scope
    by_agent = fitted_q(Logged(turned, logged.action[:, rows][:, :, swapped]), few, "agents").value
    assert torch.allclose(by_agent, fitted_q(logged, few, "agents").value, atol=1e-4)


def test_d3rlpy_and_ours_agree_on_the_chain(logged):
    pytest.importorskip("d3rlpy")
    question = Question(logged, FIT, 0, resamples(EPISODES, torch.device("cpu")))
    theirs, ours = (ESTIMATORS[name](question).value for name in ("d3rlpy_fqe", "fqe"))
    assert theirs.tolist() == pytest.approx(ours.tolist(), abs=0.1)


def test_d3rlpy_judges_the_team_by_all_it_does_and_an_agent_by_its_own_doing():
    pytest.importorskip("d3rlpy")
    E, draws = 400, stream(0, "bandit")
    action = torch.rand(E, 2, 2, 1, generator=draws) * 2 - 1
    reward = torch.zeros(E, 2)
    reward[:, 0] = action[:, 0, :, 0].sum(1)  # each agent earns what it does
    transitions = table(toy(2, 1, 1, None), torch.zeros(E, 2, 2, 1), action, reward)
    always = torch.full_like(transitions.column("action"), 0.5)
    question = Question(Logged(transitions, always.unsqueeze(0)), FIT, 0, resamples(E, torch.device("cpu")))
    team, agents = (float(ESTIMATORS[name](question).value) for name in ("d3rlpy_fqe", "d3rlpy_fqe_agents"))
    assert team == pytest.approx(0.5, abs=0.1)
    assert agents == pytest.approx(
        0.25, abs=0.1
    )  # what the other does is no part of what an agent's action earns


def test_importance_sampling_is_exact_where_every_course_is_as_frequent_as_it_is_likely():
    """Agents choose 1 with probability 3/4 and 1/2; every course occurs in proportion: 4 ** 2 x 2 ** 2 episodes."""
    first, second = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1])
    action = torch.cartesian_prod(first, second, first, second).view(-1, 2, 2)
    transitions = chain(action)
    taken = transitions.column("action")
    probability = torch.where(taken == 1, torch.tensor([0.75, 0.5]), torch.tensor([0.25, 0.5]))
    logged = Logged(transitions, policies(len(transitions.row)))
    counts = torch.ones(2, len(action), dtype=torch.float64)
    exact = weighted_importance_sampling(logged, probability, counts, OpeConfig(smoothing=0))
    assert exact.value.tolist() == pytest.approx(CHAIN_VALUES, abs=1e-9)
    assert exact.draws.flatten().tolist() == pytest.approx(np.repeat(CHAIN_VALUES, 2), abs=1e-9)
    assert exact.effective.tolist() == pytest.approx([9.0, 1.0, 9.0])  # episodes that go the policy's way
    # A share s of choices at random: agents choose 1 with probability q = 1 - s / 2.
    q = 0.9
    smoothed = weighted_importance_sampling(logged, probability, counts, OpeConfig(smoothing=0.2))
    in_state_1 = q * q
    expected = (q + q + in_state_1 * (3 + 2 * q)) / 2
    assert float(smoothed.value[0]) == pytest.approx(expected, abs=1e-6)


def test_importance_sampling_says_when_no_episode_could_be_the_policys(logged):
    alike = chain(torch.zeros(10, 2, 2, dtype=torch.int64))
    counts = torch.ones(1, 10, dtype=torch.float64)
    always_one = Logged(alike, torch.ones(1, 30, 2, dtype=torch.int64))
    found = weighted_importance_sampling(always_one, torch.ones(30, 2), counts, OpeConfig(smoothing=0))
    assert bool(found.value.isnan().all())
    assert float(found.effective[0]) == 0
    with pytest.raises(DataError, match=r"behaviour_probability, row 0: .*no chance"):
        weighted_importance_sampling(always_one, torch.zeros(30, 2), counts, OpeConfig())


def test_a_clone_finds_the_probabilities_of_the_behaviour(logged):
    likely = cloned_probability(logged, OpeConfig(clone_steps=150))
    rows = logged.transitions.transition_rows
    assert likely[rows].mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_coverage_tells_actions_that_were_never_taken(logged):
    assert coverage(logged).tolist() == [1, 1, 1]
    alike = chain(torch.zeros(40, 2, 2, dtype=torch.int64))
    half = torch.tensor([0, 1]).expand(1, 120, 2)
    assert coverage(Logged(alike, half)).tolist() == pytest.approx([0.5])
    E = 100
    action = torch.randn(E, 2, 1, 1, generator=stream(0, "noise")) * 0.1
    narrow = table(toy(1, 1, 1, None), torch.zeros(E, 2, 1, 1), action, torch.arange(2.0 * E).view(E, 2))
    inside, outside = coverage(
        Logged(narrow, torch.stack([torch.zeros(2 * E, 1, 1), torch.ones(2 * E, 1, 1)]))
    )
    assert inside == 1
    assert outside == 0


@pytest.mark.parametrize("trunk", ["gru", "mlp"])
def test_a_policy_acts_in_the_data_as_it_would_step_by_step(trunk):
    """Episodes of different lengths; a policy with a memory begins each of them anew."""
    lengths, spec = [3, 5, 2], toy(2, 4, 4, 3)
    rows = sum(lengths)
    obs = torch.randn(rows, 2, 4, generator=stream(0, "obs"))
    start = torch.tensor([0, 3, 8, 10])
    zeros = torch.zeros(rows)
    arrays = {"obs": obs, "action": torch.zeros(rows, 2), "team_reward": zeros, "terminated": zeros}
    transitions = Transitions.from_arrays(spec, {**arrays, "truncated": zeros}, start)
    learner = make_learner("cql", spec, {"trunk": trunk}, [0, 1])
    acted = policy_actions(learner, transitions)  # [S, R, N]
    assert acted.shape == (2, rows, 2)
    assert acted.unique().numel() > 1
    for first, last in zip(start[:-1].tolist(), start[1:].tolist(), strict=True):
        memory = torch.zeros(2, 1, 2, learner.memory_dim)
        for row in range(first, last):
            action, memory = learner.step(obs[row].expand(2, 1, 2, 4), None, memory)
            assert torch.equal(action[:, 0], acted[:, row])


def test_dimensions_that_an_agent_does_not_have_are_nothing_as_in_the_data():
    spec = toy(2, 2, 2, None).model_copy(update={"action_names": (("u", "v"), ("u",))})
    learner = make_learner("bc", spec, {}, [0])
    transitions = table(spec, torch.randn(3, 3, 2, 2), torch.zeros(3, 3, 2, 2), torch.zeros(3, 3))
    acted = policy_actions(learner, transitions)
    assert (acted[0, :, 0] != 0).all()
    assert (acted[0, :, 1, 0] != 0).all()
    assert (acted[0, :, 1, 1] == 0).all()


def test_what_the_data_cannot_answer_is_refused_in_a_line(logged):
    continuous, discrete = toy(2, 2, 2, None), toy(2, 2, 2)
    with pytest.raises(UsageError, match="--estimator wis: actions of toy are continuous"):
        require_possible(["wis"], continuous, "toy/a-v0", known=False)
    with pytest.raises(UsageError, match=r"toy/a-v0 does not say how likely .*wis_cloned"):
        require_possible(["fqe", "wis"], discrete, "toy/a-v0", known=False)
    with pytest.raises(UsageError, match="did you mean fqe"):
        require_possible(["fqee"], discrete, "toy/a-v0", known=True)
    assert usual(continuous, known=False) == ["fqe", "fqe_agents", "behaviour"]
    assert "wis" in usual(discrete, known=True)
    assert "wis_cloned" in usual(discrete, known=False)
    nothing = chain(torch.zeros(10, 2, 2, dtype=torch.int64))
    nothing.row[:, nothing.columns["team_reward"]] = 0
    for estimator in ("fqe", "d3rlpy_fqe"):
        if estimator == "fqe" or find_spec("d3rlpy"):
            with pytest.raises(DataError, match="nothing to evaluate"):
                ESTIMATORS[estimator](
                    Question(Logged(nothing, policies(30)), FIT, 0, resamples(10, nothing.device))
                )


def test_ranks_and_regret():
    true = np.array([0.0, 1.0, 2.0, 4.0])
    assert spearman(np.array([1.0, 2.0, 3.0, 4.0]), true) == pytest.approx(1)
    assert spearman(-true, true) == pytest.approx(-1)
    assert spearman(np.ones(4), true) is None
    assert regret(true, true) == 0
    assert regret(-true, true) == 1
    assert regret(np.ones(4), true) == pytest.approx((4 - 1.75) / 4), "one of them at random"
    assert regret(np.array([np.nan, 1.0, 5.0, np.nan]), true) == pytest.approx(0.5)
    estimates = {"good": true, "silent": [None, None, 1.0, 2.0]}
    candidates = [
        Candidate(str(i), "toy", {name: values[i] for name, values in estimates.items()}, true[i])
        for i in range(4)
    ]
    (judged,) = accuracies([*candidates, Candidate("unplayed", "toy", {"good": 9.0})], ["good", "silent"])
    assert (judged.estimator, judged.candidates, judged.chosen) == ("good", 4, "3")


def test_equal_estimates_are_equal_whatever_the_number_of_seeds():
    for value in np.random.default_rng(0).normal(50, 30, 200).tolist():
        judged = Judgement(
            torch.full((20,), value, dtype=torch.float64), torch.ones(20, 5, dtype=torch.float64)
        )
        assert {_estimate(judged, slice(0, seeds)).value for seeds in (1, 3, 5, 6, 7)} == {value}


def test_an_estimate_that_is_not_finite_is_none():
    value = torch.tensor([1.0, float("inf")], dtype=torch.float64)
    estimate = _estimate(Judgement(value, torch.ones(2, 5, dtype=torch.float64)), slice(0, 2))
    assert (estimate.per_seed, estimate.value) == ((1.0, None), None)


def test_what_differs_by_rounding_alone_is_not_ranked():
    level = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]
    candidates = [Candidate(str(i), "toy", {"behaviour": level[i]}, 10.0 * i) for i in range(4)]
    (judged,) = accuracies(candidates, ["behaviour"])
    assert (judged.spearman, judged.low, judged.high) == (None, None, None)
    assert judged.regret == pytest.approx(0.5), "one of them at random"
    near = [Candidate(str(i), "toy", {"good": 1.0 + 1e-6 * i}, 10.0 * i) for i in range(4)]
    assert accuracies(near, ["good"])[0].spearman == pytest.approx(1)
    alike = [Candidate(str(i), "toy", {"good": 1.0 * i}, level[i]) for i in range(4)]
    assert accuracies(alike, ["good"]) == []


def test_behaviours_know_how_likely_their_choices_were():
    class AlwaysFirst:
        def begin(self, starting: Tensor, generator: torch.Generator) -> None: ...

        def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
            return torch.zeros(frame.obs.shape[:2], dtype=torch.int64)

        def annotations(self) -> dict[str, Tensor]:
            return {}

    spec, draws = toy(2, 1, 1, 4), stream(0, "act")
    legal = torch.tensor([True, True, False, True]).expand(50, 2, 4)  # three choices of four
    frame = Frame(obs=torch.zeros(50, 2, 1), legal=legal)
    noisy = NoisyPolicy(AlwaysFirst(), spec, 0.3)
    action = noisy.act(frame, draws)
    expected = torch.where(action == 0, 0.8, 0.1)
    assert torch.allclose(noisy.probability(), expected)
    assert set(action.unique().tolist()) == {0, 1, 3}
    riders = FreeRiders(noisy, spec, 1)
    riders.begin(torch.ones(50, dtype=torch.bool), draws)
    action = riders.act(frame, draws)
    likely = riders.probability()
    assert torch.allclose(likely[riders.idle], torch.tensor(1 / 3))
    assert torch.allclose(likely[~riders.idle], torch.where(action == 0, 0.8, 0.1)[~riders.idle])
    continuous = NoisyPolicy(AlwaysFirst(), toy(2, 1, 1, None), 0.0)
    continuous.act(frame, draws)
    assert continuous.probability() is None
