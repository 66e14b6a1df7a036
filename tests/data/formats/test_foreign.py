"""What other programs wrote is read as they meant it; what is read nowhere is said."""

import h5py
import numpy as np
import pytest
from foreign import vault_experience, write_omar, write_pymarl, write_vault

from offmarl.data.store import Dataset
from offmarl.data.validate import validate
from offmarl.envs.registry import make
from offmarl.errors import UsageError


def rows(dataset: Dataset, name: str) -> np.ndarray:
    return dataset.read_numpy(name, 0, dataset.card.rows)


def notes(dataset: Dataset) -> str:
    return " | ".join(dataset.card.provenance["notes"])


def acting(dataset: Dataset) -> np.ndarray:
    """Which rows hold an action."""
    inner = np.ones(dataset.card.rows, dtype=bool)
    inner[dataset.episode_start.numpy()[1:] - 1] = False
    return inner


class TestOmar:
    def test_zero_dones_are_cut_into_the_horizon_of_the_task(self, bring, tmp_path):
        arrays = write_omar(tmp_path / "seed_0_data")
        dataset = bring(
            tmp_path / "seed_0_data", "omar", env="mpe_spread_omar", command="offmarl data import ..."
        )
        assert dataset.episode_start.tolist() == [0, 26, 52, 78]
        assert dataset.spec == make("mpe_spread_omar", 1).spec
        inner = acting(dataset)
        for agent in range(3):
            np.testing.assert_array_equal(
                rows(dataset, "obs")[inner, agent], arrays[f"obs_{agent}"].astype("f4")
            )
            np.testing.assert_array_equal(
                rows(dataset, "action")[inner, agent], arrays[f"acs_{agent}"].astype("f4")
            )
            final = arrays[f"next_obs_{agent}"][24::25].astype("f4")
            np.testing.assert_array_equal(rows(dataset, "obs")[~inner, agent], final)
        assert not rows(dataset, "terminated").any()
        assert np.flatnonzero(rows(dataset, "truncated")).tolist() == [24, 50, 76]
        assert "cut every 25 rows" in notes(dataset)
        assert "float64 there, float32 here" in notes(dataset)
        assert validate(dataset) == []

    def test_the_team_reward_is_the_sum_of_what_the_agents_were_paid(self, bring, tmp_path):
        arrays = write_omar(tmp_path / "d")
        dataset = bring(tmp_path / "d", "omar", env="mpe_spread_omar")
        stored = np.stack([arrays[f"rews_{agent}"] for agent in range(3)], axis=1).astype("f4")
        np.testing.assert_array_equal(rows(dataset, "agent_reward")[acting(dataset)], stored)
        np.testing.assert_allclose(
            rows(dataset, "team_reward")[acting(dataset)], stored.sum(1), rtol=1e-5, atol=1e-6
        )
        # As published results on these tasks: the mean over agents of an episode's sum.
        expected = stored.reshape(3, 25, 3).sum(1).mean()
        assert dataset.card.statistics["return"]["mean"] == pytest.approx(expected, rel=1e-5)
        assert "team_reward is the sum of the agents' stored rewards" in notes(dataset)

    def test_prey_is_left_out_and_has_no_share(self, bring, tmp_path):
        arrays = write_omar(tmp_path / "d", widths=(16, 16, 16, 14), shared=True)
        np.save(tmp_path / "d" / "rews_3.npy", arrays["rews_3"] * -5)
        dataset = bring(tmp_path / "d", "omar", env="mpe_tag_omar")
        assert dataset.spec.n_agents == 3
        np.testing.assert_allclose(
            rows(dataset, "team_reward")[acting(dataset)], 3 * arrays["rews_0"], rtol=1e-5
        )
        assert "agent 3 is left out" in notes(dataset)
        assert "all agents are paid the same" in notes(dataset)
        names = dataset.card.provenance["source"]["sha256"]
        assert "obs_2.npy" in names
        assert "obs_3.npy" not in names

    def test_a_copy_is_read_as_the_teams_reward_where_asked(self, bring, tmp_path):
        arrays = write_omar(tmp_path / "d", shared=True)
        dataset = bring(tmp_path / "d", "omar", env="mpe_spread_omar", team_reward="copy")
        assert "agent_reward" not in dataset.card.arrays
        np.testing.assert_allclose(rows(dataset, "team_reward")[acting(dataset)], arrays["rews_0"], rtol=1e-6)

    def test_rewards_that_differ_are_no_copies(self, bring, tmp_path):
        arrays = write_omar(tmp_path / "d", shared=True)
        arrays["rews_1"][30] = 7.5
        np.save(tmp_path / "d" / "rews_1.npy", arrays["rews_1"])
        with pytest.raises(UsageError, match=r"at step 30 .* differ \(.*7\.5.*\).*--team-reward sum"):
            bring(tmp_path / "d", "omar", env="mpe_spread_omar", team_reward="copy")

    def test_an_unknown_task_is_described_by_the_arrays(self, bring, tmp_path):
        write_omar(tmp_path / "d", rows=24, horizon=6, widths=(4, 3, 4), done=True)
        dataset = bring(tmp_path / "d", "omar", env="mpe_spread_omr")
        spec = dataset.spec
        assert (spec.id, spec.agents, spec.horizon) == (
            "mpe_spread_omr",
            ("agent_0", "agent_1", "agent_2"),
            6,
        )
        assert spec.obs_names[1] == ("o0", "o1", "o2")
        assert spec.action_names[0] == ("a0", "a1")
        assert spec.groups == (("agent_0", "agent_2"), ("agent_1",))
        assert not rows(dataset, "obs")[:, 1, 3].any()
        assert "did you mean mpe_spread_omar?" in notes(dataset)
        # Episodes that are all equally long end by the time limit, whatever `dones` calls it.
        assert not rows(dataset, "terminated").any()

    def test_a_remainder_is_kept_and_said(self, bring, tmp_path):
        write_omar(tmp_path / "d", rows=60)
        dataset = bring(tmp_path / "d", "omar", env="mpe_spread_omar")
        assert np.diff(dataset.episode_start).tolist() == [26, 26, 11]
        assert "60 rows are no multiple of 25" in notes(dataset)

    def test_states_of_multi_agent_mujoco(self, bring, tmp_path):
        write_omar(tmp_path / "d", rows=20, horizon=5, widths=(3, 3))
        states = np.random.default_rng(1).standard_normal((20, 7))
        np.save(tmp_path / "d" / "states_0.npy", states)
        np.save(tmp_path / "d" / "next_states_0.npy", states + 1)
        dataset = bring(tmp_path / "d", "omar", env="cheetah", horizon=5)
        state = rows(dataset, "state")
        np.testing.assert_array_equal(state[acting(dataset)], states.astype("f4"))
        np.testing.assert_array_equal(state[~acting(dataset)], (states[4::5] + 1).astype("f4"))


class TestPymarl:
    @pytest.mark.parametrize("variant", ["cfcql", "icq", "plain"])
    def test_padding_goes_and_the_last_row_stays(self, variant, bring, tmp_path):
        steps = (4, 6, 2)
        arrays = write_pymarl(tmp_path / "m.h5", variant, steps)
        dataset = bring(tmp_path / "m.h5", "pymarl", env="smac_new")
        assert np.diff(dataset.episode_start).tolist() == [5, 7, 3]
        assert (dataset.spec.horizon, dataset.spec.state_dim) == (6, 4)
        assert [len(names) for names in dataset.spec.action_names] == [3, 3]
        inside = arrays["filled"][..., 0] == 1
        for ours, theirs in (("obs", "obs"), ("state", "state"), ("legal", "avail_actions")):
            np.testing.assert_array_equal(rows(dataset, ours), arrays[theirs][inside])
        inner = acting(dataset)
        np.testing.assert_array_equal(rows(dataset, "action")[inner], arrays["actions"][inside][inner, :, 0])
        np.testing.assert_array_equal(rows(dataset, "team_reward")[inner], arrays["reward"][inside][inner, 0])
        assert not rows(dataset, "team_reward")[~inner].any()
        assert np.flatnonzero(rows(dataset, "terminated")).tolist() == [3, 13]
        assert np.flatnonzero(rows(dataset, "truncated")).tolist() == [10]
        expected = {"cfcql": "the variant of CFCQL", "icq": "the variant of ICQ", "plain": ""}[variant]
        assert expected in notes(dataset)
        assert (dataset.spec.shared_reward, dataset.spec.has_agent_reward) == (False, False)
        assert validate(dataset) == []

    def test_an_episode_without_a_final_row_repeats_its_last_observation(self, bring, tmp_path):
        import h5py

        steps = (4, 7, 2)  # the second fills the file to its last column
        arrays = write_pymarl(tmp_path / "m.h5", "icq", steps)
        with h5py.File(tmp_path / "m.h5", "r+") as file:
            filled = (np.arange(7) < np.array([5, 7, 2])[:, None]).astype(np.int64)
            terminated = np.zeros((3, 7, 1), dtype=np.uint8)
            terminated[[0, 1, 2], [3, 6, 1]] = 1
            file["filled"][:], file["terminated"][:] = filled[..., None], terminated
        dataset = bring(tmp_path / "m.h5", "pymarl", env="smac_new", horizon=8)
        assert np.diff(dataset.episode_start).tolist() == [5, 8, 3]
        np.testing.assert_array_equal(rows(dataset, "obs")[5:12], arrays["obs"][1])
        np.testing.assert_array_equal(rows(dataset, "obs")[12], arrays["obs"][1, 6])
        np.testing.assert_array_equal(rows(dataset, "legal")[15], arrays["avail_actions"][2, 1])
        assert rows(dataset, "terminated").sum() == 3
        assert "2 episodes have no final observation" in notes(dataset)

    def test_empty_episodes_are_left_out(self, bring, tmp_path):
        import h5py

        arrays = write_pymarl(tmp_path / "m.h5")
        with h5py.File(tmp_path / "m.h5", "r+") as file:
            file["filled"][1] = 0
        dataset = bring(tmp_path / "m.h5", "pymarl", env="smac_new")
        assert np.diff(dataset.episode_start).tolist() == [5, 3]
        np.testing.assert_array_equal(rows(dataset, "obs")[5:], arrays["obs"][2, :3])
        assert "1 episodes without a step" in notes(dataset)

    def test_a_file_without_final_rows_has_a_longer_horizon(self, bring, tmp_path):
        write_pymarl(tmp_path / "m.h5", steps=(6, 6, 6), won=(0, 0, 0))
        with h5py.File(tmp_path / "m.h5", "r+") as file:
            file["terminated"][:, 6] = 1  # in the last of 7 filled rows
        dataset = bring(tmp_path / "m.h5", "pymarl", env="smac_new")
        assert np.diff(dataset.episode_start).tolist() == [8, 8, 8]
        assert dataset.spec.horizon == 7

    def test_copies_of_the_teams_reward_are_counted_in_steps(self, bring, tmp_path):
        arrays = write_pymarl(tmp_path / "m.h5")
        rewards = np.repeat(arrays["reward"], 2, axis=2)
        rewards[2, 1, 1] += 1  # step 1 behind episodes of 4 and 6
        with h5py.File(tmp_path / "m.h5", "r+") as file:
            del file["reward"]
            file["reward"] = rewards
        with pytest.raises(UsageError, match=r"at step 11 .* differ"):
            bring(tmp_path / "m.h5", "pymarl", env="smac_new", team_reward="copy")
        shares = bring(tmp_path / "m.h5", "pymarl", env="smac_new", team_reward="sum")
        np.testing.assert_array_equal(rows(shares, "agent_reward")[5:11], rewards[1, :6])


class TestVault:
    def test_a_vault_of_flashbax_is_read_without_jax(self, flashbax_vault, bring, monkeypatch):
        import sys

        path, experience = flashbax_vault
        for module in ("jax", "flashbax"):
            monkeypatch.setitem(sys.modules, module, None)  # importing it would fail
        dataset = bring(path, "vault", env="smac_new")
        assert np.diff(dataset.episode_start).tolist() == [5, 3, 4]
        inner, ends = acting(dataset), [3, 5, 8]
        obs = np.where(np.isneginf(experience["observations"][0]), 0, experience["observations"][0])
        np.testing.assert_array_equal(rows(dataset, "obs")[inner], obs)
        np.testing.assert_array_equal(rows(dataset, "obs")[~inner], obs[ends])  # repeated
        np.testing.assert_array_equal(rows(dataset, "action")[inner], experience["actions"][0])
        np.testing.assert_array_equal(rows(dataset, "team_reward")[inner], experience["rewards"][0, :, 0])
        np.testing.assert_array_equal(rows(dataset, "state")[inner], experience["infos"]["state"][0])
        np.testing.assert_array_equal(rows(dataset, "legal")[inner], experience["infos"]["legals"][0])
        assert [len(names) for names in dataset.spec.obs_names] == [4, 4, 3]  # -inf is padding
        assert "agent_reward" not in dataset.card.arrays
        assert np.flatnonzero(rows(dataset, "truncated")).tolist() == [3]
        assert np.flatnonzero(rows(dataset, "terminated")).tolist() == [6, 10]
        assert "the last one is repeated" in notes(dataset)
        assert set(dataset.card.provenance["source"]["sha256"]) >= {"metadata.json", "manifest.ocdbt"}

    def test_the_folder_above_a_single_vault_will_do(self, flashbax_vault, bring):
        path, _ = flashbax_vault
        assert len(bring(path.parent, "vault", env="smac_new")) == 9

    def test_rewards_that_differ_are_the_agents_own(self, bring, tmp_path):
        experience = vault_experience()
        rewards = np.random.default_rng(0).standard_normal((1, 9, 3)).astype(np.float32)
        del experience["truncations"], experience["infos"]["legals"]
        experience["infos"]["state"] = np.zeros((1, 9, 3, 5), dtype=np.float32)  # one an agent
        experience["terminals"][:, 3] = 1
        dataset = bring(write_vault(tmp_path, experience | {"rewards": rewards}), "vault", env="mpe_new")
        inner = acting(dataset)
        np.testing.assert_array_equal(rows(dataset, "agent_reward")[inner], rewards[0])
        np.testing.assert_allclose(
            rows(dataset, "team_reward")[inner], rewards[0].sum(1), rtol=1e-5, atol=1e-6
        )
        assert [len(names) for names in dataset.spec.action_names] == [2, 2, 2]  # as many as were taken
        assert rows(dataset, "terminated").sum() == 3
        assert not dataset.spec.shared_reward
        assert "state" not in dataset.card.arrays
        assert "not one vector a step: left out" in notes(dataset)

    def test_time_limits_stored_as_terminals_and_a_tail_without_an_end(self, bring, tmp_path):
        experience = vault_experience(steps=(3, 3, 3))
        experience["terminals"][:] = 0
        experience["terminals"][:, [2, 5, 8]] = 1
        experience["truncations"][:] = 0
        dataset = bring(write_vault(tmp_path / "a", experience), "vault", env="x", out=tmp_path / "one")
        assert rows(dataset, "truncated").sum() == 3
        assert not rows(dataset, "terminated").any()
        assert "terminal after exactly 3 steps" in notes(dataset)
        experience["terminals"][:, 8] = 0
        dataset = bring(write_vault(tmp_path / "b", experience), "vault", env="x", out=tmp_path / "two")
        assert np.flatnonzero(rows(dataset, "truncated")).tolist() == [10]
        assert "the last 3 steps have no end" in notes(dataset)


class TestMinari:
    def buffers(self, observation, action):
        from minari.data_collector import EpisodeBuffer

        rng = np.random.default_rng(0)
        for number, steps in enumerate((3, 5)):
            yield EpisodeBuffer(
                observations=observation(rng, steps + 1),
                actions=action(rng, steps),
                rewards=rng.standard_normal(steps),
                terminations=np.arange(steps) == (steps - 1 if number else -1),
                truncations=np.zeros(steps, dtype=bool),
                infos={"state": rng.standard_normal((steps + 1, 2))},
            )

    def write(self, monkeypatch, root, observation_space, action_space, observation, action, **options):
        import minari

        monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
        minari.create_dataset_from_buffers(
            "theirs/made-v1",
            list(self.buffers(observation, action)),
            observation_space=observation_space,
            action_space=action_space,
            **options,
        )
        return minari.load_dataset("theirs/made-v1")

    @pytest.mark.filterwarnings("ignore")
    def test_a_single_agent_with_scaled_actions(self, bring, tmp_path, monkeypatch):
        from gymnasium import spaces

        space = spaces.Dict({"b": spaces.Box(-9, 9, (2,)), "a": spaces.Discrete(3)})
        loaded = self.write(
            monkeypatch,
            tmp_path,
            space,
            spaces.Box(np.array([0.0, -2.0]), np.array([4.0, 2.0]), dtype=np.float64),
            lambda rng, n: {"b": rng.random((n, 2)).astype(np.float32), "a": rng.integers(3, size=n)},
            lambda rng, n: rng.uniform([0, -2], [4, 2], (n, 2)),
        )
        dataset = bring(tmp_path / "theirs" / "made-v1", "minari", env="door")
        episodes = list(loaded.iterate_episodes())
        assert dataset.spec.agents == ("agent",)
        obs = np.concatenate(
            [np.hstack([np.eye(3)[e.observations["a"]], e.observations["b"]]) for e in episodes]
        )
        np.testing.assert_array_equal(rows(dataset, "obs")[:, 0], obs.astype("f4"))
        actions = np.concatenate([e.actions for e in episodes])
        np.testing.assert_allclose(
            rows(dataset, "action")[acting(dataset), 0], actions / 2 - [1, 0], rtol=1e-5, atol=1e-6
        )
        assert np.flatnonzero(rows(dataset, "terminated")).tolist() == [8]
        assert np.flatnonzero(rows(dataset, "truncated")).tolist() == [2]
        assert "scaled" in notes(dataset)
        assert "without an end" in notes(dataset)
        assert dataset.spec.state_names == ("s0", "s1")

    @pytest.mark.filterwarnings("ignore")
    def test_a_dictionary_with_one_agent_is_a_team_of_one(self, bring, tmp_path, monkeypatch):
        from gymnasium import spaces

        loaded = self.write(
            monkeypatch,
            tmp_path,
            spaces.Dict({"agent": spaces.Box(-9, 9, (3,))}),
            spaces.Dict({"agent": spaces.Box(-1, 1, (2,))}),
            lambda rng, n: {"agent": rng.random((n, 3)).astype(np.float32)},
            lambda rng, n: {"agent": rng.uniform(-1, 1, (n, 2)).astype(np.float32)},
        )
        dataset = bring(tmp_path / "theirs" / "made-v1", "minari", env="one")
        assert dataset.spec.agents == ("agent",)
        obs = np.concatenate([episode.observations["agent"] for episode in loaded.iterate_episodes()])
        np.testing.assert_array_equal(rows(dataset, "obs")[:, 0], obs)

    @pytest.mark.filterwarnings("ignore")
    def test_a_tuple_of_agents(self, bring, tmp_path, monkeypatch):
        from gymnasium import spaces

        loaded = self.write(
            monkeypatch,
            tmp_path,
            spaces.Tuple([spaces.Box(-9, 9, (3,)), spaces.Box(-9, 9, (2,))]),
            spaces.Tuple([spaces.Discrete(4, start=1), spaces.Discrete(2)]),
            lambda rng, n: tuple(rng.random((n, width)).astype(np.float32) for width in (3, 2)),
            lambda rng, n: (rng.integers(1, 5, size=n), rng.integers(2, size=n)),
        )
        dataset = bring(tmp_path / "theirs" / "made-v1" / "data", "minari", env="pair")
        episodes = list(loaded.iterate_episodes())
        assert [len(names) for names in dataset.spec.obs_names] == [3, 2]
        assert [len(names) for names in dataset.spec.action_names] == [4, 2]
        first = np.concatenate([e.actions[0] for e in episodes])
        np.testing.assert_array_equal(rows(dataset, "action")[acting(dataset), 0], first - 1)
        second = np.concatenate([e.observations[1] for e in episodes])
        np.testing.assert_array_equal(rows(dataset, "obs")[:, 1, :2], second)


class TestD3rlpy:
    @pytest.fixture
    def buffer(self):
        import d3rlpy

        rng = np.random.default_rng(2)
        terminals = np.zeros(12)
        terminals[[4, 11]] = 1
        return d3rlpy.dataset.MDPDataset(
            rng.standard_normal((12, 3)).astype(np.float32),
            rng.uniform(-1, 1, (12, 2)).astype(np.float32),
            rng.standard_normal(12).astype(np.float32),
            terminals,
            timeouts=np.arange(12) == 7,
        )

    def test_one_file_is_one_agent(self, buffer, bring, tmp_path):
        with open(tmp_path / "buffer.h5", "w+b") as file:
            buffer.dump(file)
        dataset = bring(tmp_path / "buffer.h5", "d3rlpy", env="hopper")
        assert np.diff(dataset.episode_start).tolist() == [6, 4, 5]
        inner = acting(dataset)
        episodes = buffer.episodes
        obs = np.concatenate([episode.observations for episode in episodes])
        np.testing.assert_array_equal(rows(dataset, "obs")[inner, 0], obs)
        np.testing.assert_array_equal(rows(dataset, "obs")[~inner, 0], obs[[4, 7, 11]])
        rewards = np.concatenate([episode.rewards for episode in episodes])
        np.testing.assert_array_equal(rows(dataset, "team_reward")[inner], rewards[:, 0])
        assert np.flatnonzero(rows(dataset, "terminated")).tolist() == [4, 13]
        assert np.flatnonzero(rows(dataset, "truncated")).tolist() == [8]

    def test_a_flat_file_of_version_1(self, bring, tmp_path):
        rng = np.random.default_rng(2)
        actions = rng.integers(4, size=9)
        with h5py.File(tmp_path / "old.h5", "w") as file:
            file["observations"], file["actions"] = rng.standard_normal((9, 2)), actions
            file["rewards"], file["terminals"] = rng.standard_normal(9), np.arange(9) == 3
            file["episode_terminals"] = np.isin(np.arange(9), [3, 6])
        dataset = bring(tmp_path / "old.h5", "d3rlpy", env="cartpole")
        assert np.diff(dataset.episode_start).tolist() == [5, 4, 3]
        assert dataset.spec.discrete
        np.testing.assert_array_equal(rows(dataset, "action")[acting(dataset), 0], actions)
        assert np.flatnonzero(rows(dataset, "terminated")).tolist() == [3]
