import json

import pytest
import torch

from offmarl.behaviour.collection import CollectRequest, collect_dataset
from offmarl.credit.inputs import input_layout, transition_inputs
from offmarl.credit.relabel import decompose, rewards_for
from offmarl.data.load import load_transitions, load_units
from offmarl.data.schema import CARD_NAME
from offmarl.data.store import Dataset
from offmarl.data.validate import row_problems, validate
from offmarl.envs.magent_charge import Charge
from offmarl.envs.registry import make
from offmarl.errors import DataError, UsageError
from offmarl.reporter import Silent
from offmarl.streams import stream, stream_seed

pytest.importorskip("magent2")

AGENTS = 12
OPTIONS = {"agents": AGENTS, "horizon": 60, "background": "none"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Battles in which both sides charge, with deaths and annihilations."""
    request = CollectRequest(
        env="magent_battle",
        quality="scripted",
        transitions=400,
        num_envs=8,
        env_options=OPTIONS,
        out=tmp_path_factory.mktemp("battles") / "charge-v0",
    )
    return collect_dataset(request, Silent())


def test_a_battle_takes_a_few_bytes_an_agent_and_is_valid(dataset: Dataset) -> None:
    assert validate(dataset) == []
    assert set(dataset.card.arrays) == {
        *("state", "action", "team_reward", "agent_reward", "terminated", "truncated", "alive")
    }
    assert dataset.card.bytes <= 10 * dataset.card.rows * dataset.spec.n_agents
    alive = dataset.read("alive")
    assert 0.2 < float(alive.float().mean()) < 0.95, "many died"
    assert dataset.read("terminated").any()
    assert not dataset.read("action")[~alive].any(), "what the dead were told is not kept"


def test_what_was_seen_is_read_back_exactly(dataset: Dataset) -> None:
    """Play the first wave again, as `collect` did, and compare what magent2 showed with what is rendered."""
    with make("magent_battle", 8, options=OPTIONS) as env:
        assert env.spec == dataset.spec
        frame = env.reset(stream_seed(0, "wave", 0))
        seen = [frame.obs[0]]
        noisy = dataset.read("action")
        for row in range(int(dataset.episode_start[1]) - 1):
            # The first copy plays the first episode; what the others do does not concern it.
            step = env.step(noisy[row].long().expand(8, -1))
            seen.append(step.successor.obs[0])
            assert torch.equal(step.agent_reward[0], dataset.read("agent_reward", slice(row, row + 1))[0])
    rows = slice(0, int(dataset.episode_start[1]))
    assert float((dataset.read("obs", rows) - torch.stack(seen)).abs().max()) <= 1e-5
    table = load_transitions(dataset)
    assert torch.equal(table.column("obs")[rows], torch.stack(seen))


def test_agents_are_drawn_where_they_live_and_with_what_became_of_them(dataset: Dataset) -> None:
    (rows,) = load_units(dataset, "blue")
    alive = dataset.read("alive")[:, AGENTS:]
    steps = torch.ones(dataset.card.rows, dtype=torch.bool)
    steps[dataset.episode_start[1:] - 1] = False
    assert len(rows) == int(alive[steps].sum())
    batch = rows.sample(200, [stream(0, "a"), stream(1, "a")])
    again = rows.sample(200, [stream(1, "a")])
    assert torch.equal(batch.state[1], again.state[0]), "a seed draws for itself"
    health = dataset.spec.state_names.index("blue_0.health") + batch.unit
    assert (batch.state.gather(2, health.unsqueeze(2)) > 0).all()
    assert torch.equal(batch.next_state.gather(2, health.unsqueeze(2)).squeeze(2) > 0, batch.next_alive)
    # The next state remembers what was done and paid, of whoever lived on.
    for name, value in (("last_action", batch.action), ("last_reward", batch.reward)):
        column = dataset.spec.state_names.index(f"blue_0.{name}") + batch.unit
        remembered = batch.next_state.gather(2, column.unsqueeze(2)).squeeze(2)
        assert torch.equal(remembered[batch.next_alive], value[batch.next_alive].float())
    assert rows.renderer.views(batch.state[0], batch.unit[0]).shape == (200, 13, 13, 7)
    given = torch.arange(dataset.card.rows).float().unsqueeze(1).expand(-1, 2 * AGENTS)
    taught = load_units(dataset, reward=given)[0]
    assert torch.equal(taught.batch(torch.arange(5)[None]).reward[0], taught.row[:5].float())
    with pytest.raises(UsageError, match="unknown group"):
        load_units(dataset, "green")


def test_a_decomposition_reads_the_state_but_not_what_anybody_was_paid(dataset: Dataset) -> None:
    layout = input_layout(dataset.spec)
    assert not any("last_reward" in name for name in layout.names)
    assert {"red_0.x", "next.blue_3.health", "red_5.attack_+0_-1"} <= set(layout.names)
    table = load_transitions(dataset, obs=False)
    assert "obs" not in table.columns
    rows = table.transition_rows[:50]
    inputs = transition_inputs(table, rows)
    assert inputs.shape == (50, len(layout.names))
    health = layout.names.index("next.blue_3.health")
    state = dataset.read("state")[rows + 1]
    assert torch.equal(inputs[:, health], state[:, dataset.spec.state_names.index("blue_3.health")])


def test_a_recording_of_another_map_or_magent2_is_refused(dataset: Dataset, tmp_path) -> None:
    card = json.loads((dataset.folder / CARD_NAME).read_text())

    def changed(name: str, **env) -> Dataset:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "data.h5").symlink_to(dataset.folder / "data.h5")
        (folder / CARD_NAME).write_text(json.dumps({**card, "env": {**card["env"], **env}}))
        return Dataset.open(folder)

    small = changed("small", options={**card["env"]["options"], "map_size": 20, "agents": 8})
    with pytest.raises(DataError, match="this is data of another map"):
        small.read("obs", slice(0, 1))
    large = changed("large", options={**card["env"]["options"], "map_size": 90})
    assert "were they collected on another map?" in str(validate(large)[0])
    with pytest.raises(DataError, match="begin on another map"):
        load_units(large)
    old = changed("old", versions={"magent2": "0.1.14"})
    with pytest.raises(DataError, match=r"data of magent2 0\.1\.14"):
        load_units(old)
    states = dataset.read_numpy("state", 0, 5).copy()
    states[3, 0] = 40  # outside the map
    start = torch.tensor([0, 5]).numpy()
    problems = list(row_problems(dataset.spec, {"state": states}, start, 100))
    assert [str(problem) for problem in problems] == [
        "array 'state', row 103: no state of magent_battle with these options: were they collected on another map?"
    ]


def test_a_scripted_policy_of_a_gathering_does_not_exist() -> None:
    with make("magent_gather", 1, options={"agents": 4, "map_size": 80}) as env, pytest.raises(UsageError):
        Charge(env.spec)


def test_the_team_of_an_agent_is_its_own_army(dataset: Dataset) -> None:
    own, team, mean = (rewards_for(dataset, name) for name in ("true", "team", "mean"))
    for army in (slice(0, AGENTS), slice(AGENTS, 2 * AGENTS)):
        torch.testing.assert_close(team[:, army], own[:, army].sum(1, keepdim=True).expand(-1, AGENTS))
    torch.testing.assert_close(mean * AGENTS, team)
    assert not torch.allclose(team[:, 0], team[:, AGENTS])


def test_two_armies_are_no_team_whose_reward_could_be_taken_apart(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match=r"red and blue fight each other.*background=blue"):
        decompose(dataset, "mean")
