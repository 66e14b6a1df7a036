import pytest
import torch
from recording import table

from offmarl.credit.inputs import NOBODY, input_layout, transition_inputs
from offmarl.credit.samples import prepare, split_episodes, varies
from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError


def _discrete() -> Transitions:
    """Two agents of different widths and choices; 12 episodes of 3 transitions, every number tells its place."""
    spec = EnvSpec(
        id="toy",
        agents=("a", "b"),
        groups=(("a", "b"),),
        action_type="discrete",
        obs_names=(("x", "y"), ("x",)),
        action_names=(("stay", "go"), ("stay", "go", "wait")),
        horizon=3,
    )
    rows = torch.arange(48)
    obs = torch.stack([torch.stack([rows, rows + 0.5], 1), torch.stack([-rows, 0 * rows], 1)], 1).float()
    action = torch.stack([rows % 2, rows % 3], 1)
    truncated = (rows % 4 == 2).float()
    arrays = {"obs": obs, "action": action, "team_reward": rows.float(), "terminated": 0 * truncated}
    return Transitions.from_arrays(spec, arrays | {"truncated": truncated}, torch.arange(13) * 4)


def test_observations_actions_and_successors_have_names_owners_and_no_padding():
    transitions = _discrete()
    layout = input_layout(transitions.spec)
    assert layout.names == (
        *("a.x", "a.y", "b.x", "a.stay", "a.go", "b.stay", "b.go", "b.wait"),
        *("next.a.x", "next.a.y", "next.b.x"),
    )
    assert layout.owner.tolist() == [0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1]
    inputs = transition_inputs(transitions, torch.tensor([5]))
    assert inputs.tolist() == [[5, 5.5, -5, 0, 1, 0, 0, 1, 6, 6.5, -6]]


def test_an_owned_state_takes_the_place_of_observations(scm):
    transitions, _ = scm
    layout = input_layout(transitions.spec)
    spec = transitions.spec
    assert layout.names[: spec.state_dim] == spec.state_names
    assert set(layout.owner.tolist()) == {NOBODY, 0, 1, 2}
    assert layout.shared.sum() == 2 * 6
    assert all(name in layout.names for cause in spec.causes for name in cause)
    row = transitions.transition_rows[30]
    inputs = transition_inputs(transitions, row[None])[0]
    assert inputs[: spec.state_dim].equal(transitions.column("state")[row])
    assert inputs[-spec.state_dim :].equal(transitions.column("state")[row + 1])


def test_a_users_map_of_owners_is_taken_over_the_tasks():
    spec = _discrete().spec
    layout = input_layout(spec, {"a.*": "b", "a.x": "nobody", "*.go": "a", "next.b.x": "a"})
    owner = dict(zip(layout.names, layout.owner.tolist(), strict=True))
    assert [owner[name] for name in ("a.x", "a.y", "b.x")] == [NOBODY, 1, 1]  # a name beats a pattern
    assert [owner[name] for name in ("next.a.x", "next.a.y", "next.b.x")] == [
        NOBODY,
        1,
        0,
    ]  # follows unless given
    assert [owner[name] for name in ("a.stay", "a.go", "b.stay", "b.go")] == [
        1,
        0,
        1,
        0,
    ]  # later beats earlier
    assert input_layout(spec, {}).owner.equal(input_layout(spec).owner)


def test_successors_follow_an_exception_to_a_pattern():
    spec = _discrete().spec

    def owner(given):
        layout = input_layout(spec, given)
        return dict(zip(layout.names, layout.owner.tolist(), strict=True))

    all_but_one = owner({"*": "nobody", "a.x": "a"})
    assert [name for name in all_but_one if all_but_one[name] == 0] == ["a.x", "next.a.x"]
    apart = owner({"*.x": "nobody", "next.*": "b"})
    assert {apart[name] for name in apart if name.startswith("next.")} == {1}
    assert apart["a.x"] == apart["b.x"] == NOBODY


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ({"a.speed": "a"}, "unknown variable 'a.speed'"),
        ({"c.*": "a"}, r"unknown variable 'c\.\*'"),
        ({"a.x": "everybody"}, "unknown owner of 'a.x' 'everybody'"),
    ],
)
def test_a_map_of_owners_that_fits_nothing_is_refused(owner, message):
    with pytest.raises(UsageError, match=message):
        input_layout(_discrete().spec, owner)


def test_roles_follow_the_owners():
    spec = _discrete().spec
    alike = {"obs_names": (("x", "y"),) * 2, "action_names": (("stay", "go"),) * 2}
    spec = spec.model_copy(update=alike)
    arrays = {"obs": torch.randn(48, 2, 2, generator=torch.Generator().manual_seed(0))}
    arrays |= {"action": torch.arange(96).view(48, 2) // 2 % 2, "team_reward": torch.arange(48.0)}
    arrays["action"][::3, 0] = 1
    truncated = (torch.arange(48) % 4 == 2).float()
    arrays |= {"terminated": 0 * truncated, "truncated": truncated}
    transitions = Transitions.from_arrays(spec, arrays, torch.arange(13) * 4)

    def roles(owner):
        return prepare(transitions, 0.25, 10**9, 0, torch.device("cpu"), input_layout(spec, owner)).roles

    (role,) = roles({})
    assert role.tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    (role,) = roles({"*.y": "nobody"})
    assert role.tolist() == [[0, 4, 5, 8], [2, 6, 7, 10]]
    assert roles({"a.y": "nobody"}) == []  # the agents no longer own alike


def test_a_constant_that_one_agent_alone_observes_leaves_the_roles():
    transitions, _ = table(3, lambda obs, action: obs[:, :, 0], episodes=10)
    spec = transitions.spec.model_copy(
        update={"obs_names": (("x0", "x1", "flag"), ("x0", "x1"), ("x0", "x1"))}
    )
    names = ("action", "team_reward", "terminated", "truncated")

    def roles(flag: torch.Tensor) -> list[torch.Tensor]:
        obs = torch.nn.functional.pad(transitions.column("obs"), (0, 1))
        obs[:, 0, 2] = flag
        arrays = {name: transitions.column(name) for name in names} | {"obs": obs}
        flagged = Transitions.from_arrays(spec, arrays, transitions.episode_start)
        return prepare(flagged, 0.1, 10**9, 0, torch.device("cpu")).roles

    (plain,) = prepare(transitions, 0.1, 10**9, 0, torch.device("cpu")).roles
    (role,) = roles(torch.tensor(7.0))
    assert role.equal(plain)
    assert roles(torch.arange(len(transitions.row)).float()) == []  # what it tells, the others do not see


def test_never_is_everything_held_out(scm):
    transitions = scm[0].episodes(range(20))
    train, _, heldout = split_episodes(transitions, 0.99, 10**9, seed=0)
    assert (len(train), len(heldout)) == (25, 19 * 25)


def test_what_varies_does_not_depend_on_the_unit():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1_000, 6, generator=generator) * torch.tensor([1.0, 1e-9, 3.5, 0.0, 0.0, 0.0])
    values += torch.tensor([0.0, 1e-9, 4e6, 5.0, 0.0, 0.1])
    values[::2, 5] = torch.tensor(0.1).nextafter(torch.tensor(1.0))  # the last bit
    assert varies(values).tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(("unit", "offset"), [(1e-9, 0.0), (1.0, 4e6)])
def test_a_reward_in_any_unit_is_no_constant(unit, offset):
    transitions, _ = table(3, lambda obs, action: obs[:, :, 0], episodes=10)
    transitions.column("team_reward").mul_(unit).add_(offset)
    samples = prepare(transitions, 0.1, 10**9, 0, torch.device("cpu"))
    assert samples.scale.reward_std == pytest.approx(3**0.5 * unit, rel=0.2)


def test_the_split_keeps_episodes_whole_and_is_a_partition(scm):
    transitions, _ = scm
    train, episode, heldout = split_episodes(transitions, 0.1, 10**9, seed=0)
    assert sorted(train.tolist() + heldout.tolist()) == transitions.transition_rows.tolist()
    steps = transitions.spec.horizon + 1
    assert not set((train // steps).tolist()) & set((heldout // steps).tolist())
    assert len(heldout) == len(transitions) // 10
    assert (train // steps)[episode == 7].unique().numel() == 1


def test_a_limit_on_transitions_is_kept_by_leaving_out_episodes(scm):
    transitions, _ = scm
    train, episode, _ = split_episodes(transitions, 0.1, 1_000, seed=0)
    assert len(train) == 1_000
    assert episode.max() == 39


def test_constants_are_left_out_and_the_rest_is_standardised():
    samples = prepare(_discrete(), 0.25, 10**9, 0, torch.device("cpu"))
    assert len(samples.scale.varying) == 11
    assert torch.allclose(samples.inputs.mean(0), torch.zeros(11), atol=1e-5)
    assert torch.allclose(samples.inputs.std(0), torch.ones(11), atol=1e-5)
    transitions = _discrete()
    transitions.column("obs")[:, 0, 1] = 3.25
    samples = prepare(transitions, 0.25, 10**9, 0, torch.device("cpu"))
    assert samples.scale.varying.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 10]
    assert samples.inputs.isfinite().all()
