"""Which task an import says it is from."""

import numpy as np
import pytest
from foreign import vault_experience, write_omar, write_pymarl, write_vault

from offmarl.behaviour.random import RandomPolicy
from offmarl.data.collect import collect
from offmarl.data.formats.beside import beside_path
from offmarl.data.formats.transfer import export_dataset
from offmarl.data.store import Dataset
from offmarl.data.writer import Writer
from offmarl.envs.registry import make
from offmarl.errors import DataError, UsageError
from offmarl.reporter import Silent


def recorded(folder, env_id: str, **options) -> Dataset:
    with make(env_id, 2, options=options) as env, Writer(folder, env.spec, id=f"{env_id}/own-v0") as writer:
        collect(env, RandomPolicy(env.spec), writer, 60, seed=0)
    return Dataset.open(folder)


def without_what_lies_beside(path):
    beside_path(path, path.is_dir()).unlink()
    return path


@pytest.mark.parametrize("form", ["pymarl", "vault", "d3rlpy"])
def test_the_discrete_form_of_a_known_task_is_found(form, bring, tmp_path):
    ours = recorded(tmp_path / "ours", "mpe_spread", actions="discrete")
    export_dataset(ours, form, tmp_path / "theirs", False, Silent())
    back = bring(without_what_lies_beside(tmp_path / "theirs"), form, env="mpe_spread")
    assert back.spec.options["actions"] == "discrete"
    assert back.spec.model_copy(update={"state_names": ()}) == ours.spec
    for name in ("obs", "action", "team_reward", "truncated"):
        before, after = (one.read_numpy(name, 0, ours.card.rows) for one in (ours, back))
        inner = np.ones(ours.card.rows, dtype=bool)
        inner[ours.episode_start.numpy()[1:] - 1] = form == "pymarl"  # the others have no final row
        np.testing.assert_array_equal(before[inner], after[inner], err_msg=name)


def test_a_state_that_the_task_does_not_have_is_kept(bring, tmp_path):
    write_omar(tmp_path / "d")
    for name in ("states_0", "next_states_0"):
        np.save(tmp_path / "d" / f"{name}.npy", np.ones((75, 2)))
    dataset = bring(tmp_path / "d", "omar", env="mpe_spread_omar")
    assert dataset.spec.state_names == ("s0", "s1")
    assert any("mpe_spread_omar has no state" in note for note in dataset.card.provenance["notes"])


def test_padded_prey_in_a_vault_of_omars_data(bring, tmp_path):
    rng = np.random.default_rng(0)
    experience = vault_experience(steps=(25, 25), n_agents=4)
    obs = rng.standard_normal((1, 50, 4, 16)).astype(np.float32)
    obs[:, :, 3, 14:] = -np.inf
    rewards = np.repeat(rng.standard_normal((1, 50, 1)), 4, axis=2).astype(np.float32)
    rewards[:, :, 3] *= -3  # the prey's
    truncations = np.zeros((1, 50, 4), dtype=np.float32)
    truncations[:, [24, 49]] = 1
    experience |= {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (1, 50, 4, 2)).astype(np.float32),
        "rewards": rewards,
        "terminals": truncations * 0,
        "truncations": truncations,
        "infos": {"state": rng.standard_normal((1, 50, 62)).astype(np.float32)},
    }
    path = write_vault(tmp_path, experience)
    dataset = bring(path, "vault", env="mpe_tag_omar", team_reward="sum")
    assert dataset.spec.agents == make("mpe_tag_omar", 1).spec.agents
    np.testing.assert_allclose(
        dataset.read_numpy("team_reward", 0, 25), 3 * rewards[0, :25, 0], rtol=1e-5, atol=1e-6
    )
    assert not dataset.read_numpy("terminated", 0, 52).any()


def test_a_task_whose_simulator_is_not_here(bring, tmp_path, monkeypatch):
    def missing(*_: object, **__: object):
        raise UsageError("the package 'jaxmarl' is not installed")

    monkeypatch.setattr("offmarl.data.formats.task.make", missing)
    path = write_vault(tmp_path, vault_experience())
    dataset = bring(path, "vault", env="smax_3m")
    assert dataset.spec.id == "smax_3m"
    assert any(
        "the simulator of smax_3m is not installed here" in note for note in dataset.card.provenance["notes"]
    )
    with pytest.raises(UsageError, match="is not installed"):
        bring(path, "vault", env="smax_3m", env_options={"horizon": 3}, out=tmp_path / "other")


def test_an_export_knows_its_task(bring, mixed, tmp_path):
    export_dataset(mixed[True], "vault", tmp_path / "theirs", False, Silent())
    with pytest.raises(UsageError, match="was exported from mixed, not from mpe_spread"):
        bring(tmp_path / "theirs", "vault", env="mpe_spread")
    assert bring(tmp_path / "theirs", "vault", env="mixed").spec == mixed[True].spec


def test_a_horizon_shorter_than_an_episode(bring, tmp_path):
    write_pymarl(tmp_path / "m.h5")
    with pytest.raises(UsageError, match="--horizon 2: episode 1 has 6 steps: --horizon 6, or leave it out"):
        bring(tmp_path / "m.h5", "pymarl", env="new", horizon=2)
    assert bring(tmp_path / "m.h5", "pymarl", env="new", horizon=8).spec.horizon == 8


def test_longer_episodes_than_the_task_allows(bring, tmp_path):
    write_omar(tmp_path / "d", rows=80, horizon=40)
    with pytest.raises(
        DataError, match=r"has 40 steps, mpe_spread_omar has a horizon of 25 .*env.horizon=40"
    ):
        bring(tmp_path / "d", "omar", env="mpe_spread_omar", horizon=40)
    dataset = bring(tmp_path / "d", "omar", env="mpe_spread_omar", env_options={"horizon": 40})
    assert dataset.spec.horizon == 40
