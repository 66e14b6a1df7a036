import pytest
import torch

from offmarl.envs.opponents.policy import Flee
from offmarl.envs.registry import make

NUMBERS = {"agents": 3, "prey": 2, "obstacles": 2}


def place(env, **where: tuple[float, float]) -> torch.Tensor:
    """Everybody far from everybody, but for who is named."""
    names = [entity.name for entity in env.entities]
    position = torch.tensor([[[-2.5 + 0.9 * (i % 6), -2.5 + 2 * (i // 6)] for i in range(len(names))]])
    for name, at in where.items():
        position[0, names.index(name)] = torch.tensor(at)
    return position


def test_the_papers_numbers_are_the_defaults() -> None:
    env = make("mpe_predator_prey_large", 2, options={"background": "none"})
    kinds = [entity.kind for entity in env.entities]
    assert [kinds.count(kind) for kind in ("predator", "prey", "obstacle")] == [20, 40, 20]
    assert [len(group) for group in env.spec.groups] == [20, 40]
    assert env.spec.discrete
    env.reset(0)
    assert 2.5 < float(env.entity_positions().abs().max()) <= 3


def test_each_is_paid_for_its_own_contacts() -> None:
    # These rules move bodies after a contact only in the step that follows it.
    env = make("mpe_predator_prey_large", 1, options={**NUMBERS, "background": "none", "rules": "pettingzoo"})
    still = torch.zeros(1, 5, dtype=torch.int64)
    # Predator 0 touches both prey; predator 1 touches prey 1.
    beside = {"prey_0": (0.11, 0.0), "prey_1": (-0.11, 0.0), "predator_1": (-0.22, 0.0)}
    env.set_state(place(env, predator_0=(0.0, 0.0), **beside))
    step = env.step(still)
    assert step.agent_reward.tolist() == [[20.0, 10.0, 0.0, -10.0, -20.0]]
    assert not step.terminated.any()


@pytest.mark.parametrize(("x", "penalty"), [(2.0, 0.0), (2.9, 0.0), (2.95, 0.5), (3.5, 2.718), (30.0, 10.0)])
def test_prey_loses_more_the_further_out_it_is(x: float, penalty: float) -> None:
    env = make("mpe_predator_prey_large", 1, options={**NUMBERS, "background": "none"})
    env.set_state(place(env, prey_0=(x, 0.0), prey_1=(-x, -x)))
    reward = env.step(torch.zeros(1, 5, dtype=torch.int64)).agent_reward[0]
    assert float(reward[3]) == pytest.approx(-penalty, abs=1e-3)
    assert float(reward[4]) == pytest.approx(-min(2 * penalty, 10.0), abs=2e-3), "both ways out, at most 10"
    assert not reward[:3].any()


def test_bodies_move_as_in_tag() -> None:
    options = {**NUMBERS, "background": "none", "actions": "discrete", "rules": "pettingzoo", "horizon": 25}
    ours = make("mpe_predator_prey_large", 4, options=options)
    tag = make("mpe_tag", 4, options=options)
    tag.reset(0)
    ours.reset(1)
    ours.set_state(tag.entity_positions(), tag.entity_velocities())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        action = torch.randint(5, (4, 5), generator=generator)
        tag.step(action)
        ours.step(action)
        assert torch.equal(ours.entity_positions(), tag.entity_positions())


def test_scripted_prey_turns_back_at_the_edge_of_its_own_square() -> None:
    names = ["position_x", "position_y", "hunter.relative_x", "hunter.relative_y"]
    seen = torch.tensor([[[2.0, 0.0, 0.0, 0.0], [2.7, 0.0, 0.0, 0.0]]])
    wide, narrow = Flee(names, ["hunter"], arena=3.0)(seen), Flee(names, ["hunter"])(seen)
    assert wide[0, :, 0].sign().tolist() == [0.0, -1.0]
    assert narrow[0, :, 0].sign().tolist() == [-1.0, -1.0]
