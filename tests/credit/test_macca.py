from dataclasses import replace

import pytest
import torch
from recording import QUICK, agreement, record, table

from offmarl.credit.base import Credit
from offmarl.credit.heads import FittedFunctions, RewardHeads, variables_seen
from offmarl.credit.macca import Macca, MaccaConfig
from offmarl.credit.samples import prepare, split_episodes
from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError
from offmarl.settings import configure
from offmarl.streams import stream


def split(transitions: Transitions, config: MaccaConfig, seed: int = 0) -> Credit:
    decomposer = Macca(transitions.spec, config, seed)
    decomposer.fit(transitions)
    return decomposer.assign(transitions)


def changed(transitions: Transitions, column: str, change) -> Transitions:
    """The same table with one column changed."""
    copy = replace(transitions, row=transitions.row.clone())
    values = copy.column(column)
    values.copy_(change(values.clone()))
    return copy


@pytest.fixture(scope="module")
def recovered(scm) -> Credit:
    return split(scm[0], MaccaConfig(**QUICK))


def test_causes_and_rewards_are_recovered(scm, recovered):
    found = agreement(recovered, *scm)
    assert not recovered.fallback, recovered.reason
    assert found["f1"] >= 0.95
    assert found["pearson"] >= 0.95
    assert found["skill"] >= 0.85
    assert found["hijack"] == 0
    assert recovered.metrics["fit_r2"] > 0.85
    assert [agent.verdict for agent in recovered.agents] == ["identified"] * 3
    assert all(agent.reproducibility > 0.97 for agent in recovered.agents)


def test_rewards_add_up_to_the_teams(scm, recovered):
    transitions, _ = scm
    team_reward = transitions.column("team_reward")
    error = (recovered.reward.sum(1) - team_reward)[transitions.transition_rows].abs().max()
    assert error <= 1e-5 * team_reward.abs().max()


def test_the_last_row_of_an_episode_earns_nothing(scm, recovered):
    transitions, _ = scm
    ends = transitions.episode_start[1:] - 1
    assert not recovered.reward[ends].any()
    assert not recovered.std[ends].any()
    assert recovered.reward.isfinite().all()


def test_without_the_exact_sum_the_residual_stays(scm, hasty):
    transitions, _ = scm
    credit = split(transitions, replace(hasty, exact_sum=False, fallback=False))
    residual = (credit.reward.sum(1) - transitions.column("team_reward"))[transitions.transition_rows]
    assert residual.std() > 0.1
    assert abs(residual.mean()) < 0.2 * residual.std()  # the constant is shared out all the same


def test_the_same_seed_gives_the_same_answer_and_another_a_different_one(scm, hasty):
    transitions, _ = scm
    config = replace(hasty, fallback=False)
    first, again, other = (split(transitions, config, seed).reward for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)


def test_scaling_and_shifting_the_reward_scales_and_shifts_the_answer(scm, hasty):
    transitions, _ = scm
    config = replace(hasty, fallback=False)
    plain = split(transitions, config).reward
    doubled = split(changed(transitions, "team_reward", lambda reward: 4 * reward), config).reward
    assert torch.allclose(doubled, 4 * plain, rtol=1e-5, atol=1e-5)


def test_a_constant_column_changes_nothing(scm, hasty):
    transitions, _ = scm
    spec = transitions.spec
    wider = spec.model_copy(
        update={
            "state_names": (*spec.state_names, "global.constant"),
            "state_owner": (*spec.state_owner, -1),
            "causes": None,
        }
    )
    columns = ("obs", "action", "team_reward", "terminated", "truncated")
    arrays = {name: transitions.column(name) for name in columns}
    state = transitions.column("state")
    arrays["state"] = torch.cat([state, torch.full((len(state), 1), 7.0)], 1)
    with_constant = Transitions.from_arrays(wider, arrays, transitions.episode_start)
    config = replace(hasty, fallback=False)
    credit = split(with_constant, config)
    assert credit.reward.equal(split(transitions, config).reward)
    assert not credit.masks[:, credit.input_names.index("global.constant")].any()


def test_what_agents_are_taught_with_is_never_looked_at(scm, hasty):
    transitions, truth = scm
    config = replace(hasty, fallback=False)
    plain = split(transitions, config).reward
    assert split(transitions.with_reward(truth), config).reward.equal(plain)
    secret = transitions.spec.model_copy(update={"causes": None, "has_agent_reward": False})
    assert split(replace(transitions, spec=secret), config).reward.equal(plain)


def test_exchanging_two_agents_exchanges_the_answer(scm, quick, recovered):
    transitions, _ = scm
    order = [2, 0, 1]
    spec = transitions.spec
    dims = torch.tensor(
        [dim for agent in order for dim in range(6 * agent, 6 * agent + 6)] + list(range(18, 24))
    )
    arrays = {name: transitions.column(name) for name in ("team_reward", "terminated", "truncated")}
    arrays |= {name: transitions.column(name)[:, order] for name in ("obs", "action")}
    arrays["state"] = transitions.column("state")[:, dims]
    exchanged = Transitions.from_arrays(
        spec.model_copy(update={"causes": None}), arrays, transitions.episode_start
    )
    credit = split(exchanged, quick)
    for place, agent in enumerate(order):
        together = torch.stack([credit.reward[:, place], recovered.reward[:, agent]])
        assert torch.corrcoef(together)[0, 1] > 0.95
        names = {credit.input_names[k] for k in credit.masks[place].nonzero().squeeze(1)}
        expected = {recovered.input_names[k] for k in recovered.masks[agent].nonzero().squeeze(1)}
        assert {n.replace(f"agent_{place}", f"agent_{agent}") for n in names} == expected


def test_a_shared_reward_is_split_equally_and_said_so(scm):
    transitions, _ = scm
    credit = split(transitions, MaccaConfig(shared_reward=True))
    rows = transitions.transition_rows
    share = transitions.column("team_reward")[rows] / 3
    assert torch.allclose(credit.reward[rows], share[:, None].expand(-1, 3))
    assert credit.fallback
    assert "paid the same, as declared" in credit.reason
    assert credit.agents[0].verdict == "shared reward: equal split is exact"
    by_environment = replace(transitions, spec=transitions.spec.model_copy(update={"shared_reward": True}))
    assert "by the environment" in split(by_environment, MaccaConfig()).reason


@pytest.mark.parametrize(
    ("column", "reason"), [("team_reward", "the team reward is constant"), ("state", "no variable")]
)
def test_nothing_to_explain_falls_back_with_the_reason(scm, hasty, column, reason):
    transitions, _ = scm
    constant = changed(transitions, column, torch.zeros_like)
    if column == "state":
        constant = changed(constant, "action", torch.zeros_like)
        reason = "every observation and action is constant"
    credit = split(constant, hasty)
    assert credit.fallback
    assert reason in credit.reason


def test_a_reward_that_nothing_explains_falls_back(scm, quick):
    transitions, _ = scm
    noise = changed(
        transitions, "team_reward", lambda reward: torch.randn(reward.shape, generator=torch.Generator())
    )
    credit = split(noise, replace(quick, structure_steps=300))
    assert credit.fallback
    assert credit.reason
    rows = transitions.transition_rows
    assert torch.allclose(credit.reward[rows, 0], noise.column("team_reward")[rows] / 3)


def test_too_few_episodes_fall_back(scm, hasty):
    credit = split(scm[0].episodes(range(5)), hasty)
    assert credit.fallback
    assert "5 episodes are too few" in credit.reason


def test_episodes_of_unequal_length_are_fine(scm, hasty):
    transitions, _ = scm
    starts = transitions.episode_start
    uneven = torch.cat([starts[:1], starts[2::3], starts[-1:]]).unique()
    names = ("obs", "state", "action", "team_reward", "terminated", "truncated")
    arrays = {name: transitions.column(name) for name in names}
    table = Transitions.from_arrays(transitions.spec, arrays, uneven)
    credit = split(table, replace(hasty, fallback=False))
    assert credit.reward.isfinite().all()


def test_discrete_actions_and_observed_inputs_are_decomposed():
    """Two agents paid for their choice, one of them only where its observation is positive."""
    transitions, _ = record("scm_a", 10_000, options={"agents": 2})
    spec = transitions.spec
    choices = ("stay", "go", "wait")
    update = {
        "action_type": "discrete",
        "action_names": (choices,) * 2,
        "obs_names": (("x", "y"),) * 2,
        "state_names": (),
        "state_owner": (),
        "causes": None,
    }
    obs = transitions.column("obs")[:, :, :2].clone()
    action = torch.randint(3, obs.shape[:2], generator=torch.Generator().manual_seed(0))
    truth = torch.stack([(action[:, 0] == 1).float() * obs[:, 0, 0], 2.0 * (action[:, 1] == 2)], 1)
    arrays = {name: transitions.column(name) for name in ("terminated", "truncated")}
    arrays |= {"obs": obs, "action": action, "team_reward": truth.sum(1)}
    groups = (("agent_0",), ("agent_1",))
    table = Transitions.from_arrays(
        spec.model_copy(update=update | {"groups": groups}), arrays, transitions.episode_start
    )
    credit = split(table, MaccaConfig(structure_steps=800, refit_steps=300, width=32, pruning_factors=()))
    found = agreement(credit, table, truth)
    assert found["skill"] > 0.95
    names = [{credit.input_names[k] for k in mask.nonzero().squeeze(1)} for mask in credit.masks]
    assert {"agent_0.x", "agent_0.go"} <= names[0]
    assert "agent_1.wait" in names[1]
    assert not any(name.startswith("agent_1") for name in names[0])


def _skirmish(rows_each: int = 20, episodes: int = 60) -> Transitions:
    """Four soldiers with a state of 300 dimensions, 15 choices, illegal ones and casualties."""
    N, K, D = 4, 15, 300
    spec = EnvSpec(
        id="skirmish",
        agents=tuple(f"soldier_{i}" for i in range(N)),
        groups=(tuple(f"soldier_{i}" for i in range(N)),),
        action_type="discrete",
        obs_names=(("x", "y"),) * N,
        action_names=(tuple(f"choice_{k}" for k in range(K)),) * N,
        state_names=tuple(f"s{k}" for k in range(D)),
        state_owner=tuple(k % N if k < 200 else -1 for k in range(D)),
        horizon=rows_each,
    )
    generator = torch.Generator().manual_seed(0)
    rows = episodes * (rows_each + 1)
    state = torch.randn(rows, D, generator=generator)
    legal = torch.rand(rows, N, K, generator=generator) < 0.5
    legal[..., 0] = True
    action = torch.where(legal, torch.rand(rows, N, K, generator=generator), -1.0).argmax(2)
    step = torch.arange(rows) % (rows_each + 1)
    death = torch.randint(2, 4 * rows_each, (episodes, N), generator=generator).repeat_interleave(
        rows_each + 1, 0
    )
    alive = step[:, None] < death
    truth = (2 + 2 * state[:, :N] * (action < 5)) * alive
    ended = (step == rows_each - 1).float()
    arrays = {"obs": state[:, :8].view(rows, N, 2), "state": state, "action": action, "legal": legal.float()}
    arrays |= {
        "team_reward": truth.sum(1),
        "alive": alive.float(),
        "terminated": 0 * ended,
        "truncated": ended,
    }
    starts = torch.arange(episodes + 1) * (rows_each + 1)
    return Transitions.from_arrays(spec, arrays, starts)


def test_soldiers_with_choices_long_states_and_casualties_are_paid_while_they_live(hasty):
    transitions = _skirmish()
    rows = transitions.transition_rows
    dead = transitions.column("alive")[rows] == 0
    dead &= ~dead.all(1, keepdim=True)  # where nobody lives, all share what was earned
    assert dead.any()
    decomposer = Macca(
        transitions.spec, replace(hasty, fallback=False, cross_candidates=32, screening_steps=20)
    )
    decomposer.fit(transitions)
    for exact_sum in (True, False):
        decomposer.config = replace(decomposer.config, exact_sum=exact_sum)
        credit = decomposer.assign(transitions)
        assert credit.reward.shape == (len(transitions.row), 4)
        assert credit.masks.shape == (4, 2 * 300 + 4 * 15)
        assert not credit.reward[rows][dead].any()
        assert not credit.std[rows][dead].any()
        residual = credit.reward[rows].sum(1) - transitions.column("team_reward")[rows]
        assert (residual.abs().max() <= 1e-4) == exact_sum
        assert abs(float(residual.mean())) < 0.2  # constants are shared out in both cases


def test_functions_are_centred_on_the_living_who_share_the_constants():
    variables, counts = variables_seen(torch.tensor([[True, False], [False, True]]))
    heads = RewardHeads(variables, counts.float().sum(1)[None], 4, 1, stream(0, "heads"))
    inputs = torch.randn(50, 2, generator=stream(0, "inputs"))
    alive = (torch.rand(50, 2, generator=stream(0, "alive")) < 0.7).float()
    alive[:, 0] = torch.maximum(alive[:, 0], 1 - alive[:, 1])
    raw = FittedFunctions(heads, counts.float()[None])
    fitted = raw.centred(inputs, alive)
    reward = fitted.predict(inputs, alive)[0].T  # [50, 2]
    assert not reward[alive == 0].any()
    team = raw.predict(inputs, alive)[0].sum(0)
    assert abs(float(team.mean())) > 1e-3
    assert torch.allclose(reward.sum(1), team - team.mean(), atol=1e-6)
    free = heads.predict(inputs, raw.gates)[0].T  # [50, 2]
    alone, both = alive[:, 1] == 0, alive.all(1)
    assert torch.allclose(reward[alone, 0], free[alone, 0] - team.mean(), atol=1e-6)
    for agent in (0, 1):
        centre = free[alive[:, agent] == 1, agent].mean()
        shift = (reward[both, agent] - (free[both, agent] - centre)).unique()
        assert shift.std(correction=0) < 1e-6  # the same constant share wherever both live


def test_others_variables_are_looked_at_where_they_interact_with_own_ones(hasty):
    transitions, _ = record("scm_b2", 12_000, options={"agents": 4})
    spec = transitions.spec
    decomposer = Macca(spec, replace(hasty, cross_candidates=3, screening_steps=400))
    samples = prepare(transitions, 0.1, 10**9, 0, torch.device("cpu"))
    candidates = decomposer.candidates(samples)
    near = samples.own | samples.shared
    assert (candidates & near).equal(near)
    assert (candidates & ~near).sum(1).tolist() == [3] * 4
    names = [decomposer.layout.names[k] for k in samples.scale.varying.tolist()]
    for agent, causes in enumerate(spec.causes):
        assert all(candidates[agent, names.index(name)] for name in causes)
    assert Macca(spec, hasty).candidates(samples).all()


def test_a_users_map_of_owners_decides_whose_variables_are(scm, hasty):
    transitions, _ = scm
    everything = dict.fromkeys(("agent_0.*", "agent_1.*", "agent_2.*", "global.*"), "agent_2")
    credit = split(transitions, replace(hasty, owner=everything, fallback=False))
    assert credit.masks[2].sum() > credit.masks[:2].sum()
    with pytest.raises(UsageError, match=r"variable 'agent_0\.x77'"):
        Macca(transitions.spec, replace(hasty, owner={"agent_0.x77": "nobody"}))


def test_a_parent_that_is_nobodys_is_shown_to_all_and_said_to_be(scm, hasty):
    transitions, _ = scm
    samples = prepare(transitions, 0.1, 10**9, 0, torch.device("cpu"))
    decomposer = Macca(transitions.spec, hasty)
    own, nobodys = (int(of_all.nonzero()[0]) for of_all in (samples.own[0], samples.shared))
    mask = torch.zeros_like(samples.own)
    mask[0, own] = mask[0, nobodys] = True
    decomposer.learn_structure = lambda samples: (mask[None].double(), mask[None])
    decomposer.fit(transitions)
    credit = decomposer.assign(transitions)
    column = int(samples.scale.varying[nobodys])
    assert credit.masks.nonzero().tolist() == [[0, int(samples.scale.varying[own])], [0, column]]
    assert credit.shared_parents.nonzero().tolist() == [[column]]
    seen = decomposer.fitted.heads.variables.gather(1, decomposer.fitted.gates[0].argmax(1, keepdim=True))
    assert seen[1:].flatten().tolist() == [nobodys] * (len(seen) - 1)


def test_half_of_a_role_decides_for_it_and_one_agent_alone_does_not():
    transitions, _ = table(4, lambda obs, action: obs[:, :, 0])
    decomposer = Macca(transitions.spec, MaccaConfig())
    samples = prepare(transitions, 0.1, 10**9, 0, torch.device("cpu"))
    (role,) = samples.roles  # [4, k]
    probability = torch.zeros(1, 4, samples.inputs.shape[1])
    agents = torch.arange(4)
    for place, of_each in enumerate(([0.9, 0.6, 0.2, 0.1], [0.99, 0.1, 0, 0])):
        probability[0, agents, role[:, place]] = torch.tensor(of_each)
    mask = decomposer.edges(samples, probability)[0]
    kept = [[bool(mask[agent, role[agent, place]]) for agent in range(4)] for place in range(2)]
    assert kept == [[True] * 4, [False] * 4]


def test_a_quiet_agent_of_a_role_costs_the_others_no_edge():
    def quiet(obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        obs[:, 1] *= 0.1  # one reward function, but this agent hardly moves
        return torch.sin(2 * obs[:, :, 0]) + 0.5 * obs[:, :, 1]

    transitions, truth = table(2, quiet, episodes=200)
    credit = split(transitions, MaccaConfig(**QUICK))
    assert agreement(credit, transitions, truth)["skill"] > 0.9


def test_the_held_out_reward_must_vary(scm, hasty):
    transitions = scm[0].episodes(range(20))
    rows = split_episodes(transitions, 0.1, 10**9, seed=0)[2]
    sparse = replace(transitions, row=transitions.row.clone())
    sparse.column("team_reward")[rows] = 0
    credit = split(sparse, hasty)
    assert credit.fallback
    assert "never varies where it was held out (transitions: 50)" in credit.reason
    assert "collect more episodes" in credit.reason
    assert credit.metrics == {"fit_r2": None}
    one = split(transitions, replace(hasty, max_transitions=1))
    assert "never varies where it was held out (transitions: 1)" in one.reason


def test_one_agent_is_paid_the_teams_reward(hasty):
    transitions, truth = table(1, lambda obs, action: obs[:, :, 0])
    credit = split(transitions, hasty)
    assert credit.reward.equal(truth)
    assert credit.reason == "there is one agent: its reward is the team's"
    assert credit.agents[0].verdict == "the only agent: its reward is R"


def test_a_few_refits_have_no_probes(hasty):
    transitions, _ = table(2, lambda obs, action: obs[:, :, 0], episodes=20)
    for members in (1, 2):
        credit = split(transitions, replace(hasty, members=members, structure_steps=40, fallback=False))
        assert [agent.ambiguity for agent in credit.agents] == [None, None]


def test_a_wrong_setting_is_refused():
    with pytest.raises(UsageError, match="sparsity"):
        configure(MaccaConfig, {"sparcity": 0.1}, "credit")
    with pytest.raises(UsageError, match="heldout"):
        configure(MaccaConfig, {"heldout": 1.5}, "credit")
    with pytest.raises(UsageError, match="multiple of gate_groups"):
        configure(MaccaConfig, {"batch_size": 100, "gate_groups": 8}, "credit")
