import pytest
import torch

from offmarl.behaviour.random import RandomPolicy
from offmarl.behaviour.scripted import ScriptedPolicy, scripted_policy
from offmarl.behaviour.wrappers import FreeRiders, NoisyPolicy
from offmarl.envs.base import EnvSpec, Frame
from offmarl.envs.registry import make
from offmarl.errors import UsageError
from offmarl.evaluation.rollout import rollout
from offmarl.streams import stream


def discrete_spec(choices: tuple[int, ...] = (4, 2)) -> EnvSpec:
    agents = tuple(f"agent_{i}" for i in range(len(choices)))
    return EnvSpec(
        id="toy",
        agents=agents,
        groups=(agents,),
        action_type="discrete",
        obs_names=(("x",),) * len(agents),
        action_names=tuple(tuple(f"choice_{k}" for k in range(count)) for count in choices),
        horizon=5,
    )


class Still:
    """Always the zero action: whoever moves is not following it."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec

    def begin(self, starting, generator):
        pass

    def act(self, frame, generator):
        return torch.zeros(len(frame.obs), self.spec.n_agents, self.spec.action_dim)

    def annotations(self):
        return {}


def test_random_choices_are_uniform_over_what_is_legal_and_exists():
    spec = discrete_spec()
    legal = torch.tensor([[[True, False, True, True], [True, True, True, True]]]).expand(20_000, 2, 4)
    action = RandomPolicy(spec).act(Frame(obs=torch.zeros(20_000, 2, 1), legal=legal), stream(0, "test"))
    share = torch.nn.functional.one_hot(action, 4).float().mean(0)  # [N, K]
    expected = torch.tensor([[1 / 3, 0, 1 / 3, 1 / 3], [1 / 2, 1 / 2, 0, 0]])
    assert torch.equal(share == 0, expected == 0)
    assert (share - expected).abs().max() < 0.02


def test_noise_has_the_stated_deviation_and_stays_in_bounds():
    spec = make("mpe_spread_omar").spec
    frame = Frame(obs=torch.zeros(5_000, spec.n_agents, spec.obs_dim))
    action = NoisyPolicy(Still(spec), spec, 0.2).act(frame, stream(0, "test"))
    assert action.abs().max() <= 1
    assert action.std() == pytest.approx(0.2, abs=0.01)
    with pytest.raises(UsageError, match=r"behaviour\.noise=-1"):
        NoisyPolicy(Still(spec), spec, -1)


def test_free_riders_are_as_many_as_asked_and_redrawn_with_every_episode():
    spec = make("mpe_targets", options={"agents": 5}).spec
    policy = FreeRiders(Still(spec), spec, 2)
    generator = stream(0, "test")
    policy.begin(torch.ones(1_000, dtype=torch.bool), generator)
    first = policy.annotations()["free_rider"]
    assert (first.sum(1) == 2).all()
    assert (first.float().mean(0) - 2 / 5).abs().max() < 0.06

    action = policy.act(Frame(obs=torch.zeros(1_000, 5, spec.obs_dim)), generator)
    assert torch.equal((action != 0).any(-1), first), "exactly the free riders move"

    starting = torch.arange(1_000) < 500
    policy.begin(starting, generator)
    second = policy.annotations()["free_rider"]
    assert torch.equal(second[500:], first[500:]), "an episode keeps its free riders"
    assert not torch.equal(second[:500], first[:500])
    with pytest.raises(UsageError, match="--free-riders 6: expected 1 to 5"):
        FreeRiders(Still(spec), spec, 6)


@pytest.mark.parametrize(("env_id", "times_random"), [("mpe_spread_omar", 3.5), ("mpe_targets", 5.0)])
def test_scripted_policies_solve_their_task(env_id, times_random):
    with make(env_id, 128) as env:
        scripted = rollout(env, scripted_policy(env.spec), seed=0).mean_agent.mean()
        by_chance = rollout(env, RandomPolicy(env.spec), seed=0).mean_agent.mean()
    assert scripted > times_random * by_chance


def test_scripted_hunters_share_the_prey_out():
    """Measured over 256 episodes: 138 a return, 85 where all chase the same one, 12 by chance."""
    with make("mpe_tag", 128, options={"prey": 3, "prey_policy": "random"}) as env:
        caught = {
            goals: rollout(
                env, ScriptedPolicy(env.spec, env.spec.background[:goals]), seed=0
            ).mean_agent.mean()
            for goals in (1, 3)
        }
        scripted = rollout(env, scripted_policy(env.spec), seed=0).mean_agent.mean()
    assert scripted == caught[3] > 1.3 * caught[1]


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("scm_a", {}),
        ("mpe_tag", {"background": "predators"}),  # prey that runs at a predator
        ("mpe_tag", {"background": "none", "obstacles": 4}),  # everybody at an obstacle
    ],
)
def test_a_task_without_a_script_says_so(env_id, options):
    with pytest.raises(UsageError, match=f"no scripted policy is known for {env_id}"):
        scripted_policy(make(env_id, options=options).spec)


def test_the_scripted_leader_says_nothing():
    with make("mpe_world", 1, workers=1) as env:
        action = scripted_policy(env.spec).act(env.reset(0), stream(0, "test"))
        assert env.spec.action_names[0][2:] == ("say_0", "say_1", "say_2", "say_3")
        assert (action[0, 0, 2:] == -1).all()
        heard = [k for k, name in enumerate(env.spec.obs_names[1]) if ".message_" in name]
        assert not env.step(action).successor.obs[0, 1, heard].any()
