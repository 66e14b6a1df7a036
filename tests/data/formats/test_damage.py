"""A wrong or damaged file: one line that names the array, its shape and what was expected; nothing is left."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest
from foreign import write_omar, write_pymarl

from offmarl.data.formats.transfer import export_dataset
from offmarl.errors import DataError, OffmarlError, UsageError
from offmarl.reporter import Silent


@pytest.fixture
def refused(bring, tmp_path):
    """What an import says that must fail, having left nothing."""

    def refused(path, form, kind=DataError, **options):
        with pytest.raises(kind) as caught:
            bring(path, form, **options)
        message = str(caught.value)
        assert "\n" not in message
        left = {name for name in os.listdir(tmp_path) if name.startswith("imported")}
        assert left == set(), left
        return message

    return refused


def save(folder, name, values):
    np.save(folder / f"{name}.npy", values)


class TestOmar:
    @pytest.fixture
    def folder(self, tmp_path):
        write_omar(tmp_path / "d")
        return tmp_path / "d"

    def test_a_missing_array(self, folder, refused):
        (folder / "next_obs_1.npy").unlink()
        assert "array 'next_obs_1.npy' is missing" in refused(folder, "omar", env="mpe_spread_omar")

    @pytest.mark.parametrize("agent", [0, 1, 2])
    def test_an_agent_that_lost_a_file_is_missed(self, agent, folder, refused):
        (folder / f"obs_{agent}.npy").unlink()
        assert f"array 'obs_{agent}.npy' is missing" in refused(folder, "omar", env="mine")

    def test_an_agent_whose_rows_were_shuffled(self, folder, refused):
        order = np.random.default_rng(0).permutation(75)
        for path in folder.glob("*_1.npy"):
            np.save(path, np.load(path)[order])
        message = refused(folder, "omar", env="mpe_spread_omar")
        assert "array 'next_obs_1.npy'" in message
        assert "rows are not in the order of time" in message

    @pytest.mark.parametrize("choice", [np.inf, np.nan, 1e8, -2])
    def test_choices_that_are_none(self, choice, folder, refused):
        for agent in range(3):
            save(folder, f"acs_{agent}", np.full(75, 1.0))
        save(folder, "acs_2", np.where(np.arange(75) == 9, choice, -5.0 if choice == -2 else 1.0))
        assert f"array 'acs_2.npy' holds {choice:g}, expected choices" in refused(folder, "omar", env="mine")

    def test_arrays_of_different_length(self, folder, refused):
        save(folder, "acs_2", np.zeros((70, 2)))
        message = refused(folder, "omar", env="mpe_spread_omar")
        assert "array 'acs_2.npy' has shape [70, 2], expected [75, 2]" in message

    def test_a_truncated_array(self, folder, refused):
        path = folder / "obs_0.npy"
        path.write_bytes(path.read_bytes()[:-500])
        message = refused(folder, "omar", env="mpe_spread_omar")
        assert "obs_0.npy is damaged, or was cut short" in message

    def test_dimensions_of_another_task(self, folder, refused):
        message = refused(folder, "omar", env="mpe_world_omar")
        assert (
            "array 'obs_0.npy' has shape [75, 18], mpe_world_omar has observations of 24 numbers" in message
        )

    def test_another_number_of_agents(self, folder, refused):
        assert "3 agents, mpe_targets has 8" in refused(folder, "omar", env="mpe_targets")

    def test_a_wrong_horizon_is_noticed(self, tmp_path, refused):
        write_omar(tmp_path / "long", rows=80, horizon=40)
        message = refused(tmp_path / "long", "omar", env="mpe_new", horizon=16)
        assert "array 'next_obs_0.npy', row 39" in message
        assert "--horizon 40" in message

    def test_rows_that_were_shuffled(self, folder, refused):
        order = np.random.default_rng(0).permutation(75)
        for path in folder.glob("*.npy"):
            np.save(path, np.load(path)[order])
        assert "rows are not in the order of time" in refused(folder, "omar", env="mpe_spread_omar")

    def test_numbers_that_are_none(self, folder, refused):
        values = np.load(folder / "rews_1.npy")
        values[30] = np.nan
        save(folder, "rews_1", values)
        message = refused(folder, "omar", env="mpe_spread_omar")
        assert "not a finite number" in message
        assert "row 31" in message  # one final row was inserted before it

    @pytest.mark.parametrize(
        ("changed", "row"), [(("obs_0",), 7), (("next_obs_0",), 6), (("obs_0", "next_obs_0"), 6)]
    )
    def test_an_observation_that_is_no_number_is_no_horizon(self, changed, row, folder, refused):
        for name in changed:
            values = np.load(folder / f"{name}.npy")
            values[7 if name == "obs_0" else 6, 3] = np.nan
            save(folder, name, values)
        message = refused(folder, "omar", env="mpe_new")
        assert message.endswith(f"array '{changed[-1]}.npy', row {row}: not a finite number")

    @pytest.mark.parametrize(
        ("name", "change", "said"),
        [
            (
                "obs_0",
                lambda _: np.float64(3),
                "obs_0.npy: expected one array with a row for each transition",
            ),
            ("obs_1", lambda values: values.astype(str), "array 'obs_1.npy' holds <U32, expected numbers"),
            (
                "rews_0",
                lambda values: values.astype(complex),
                "'rews_0.npy' holds complex128, expected numbers",
            ),
            ("rews_0", lambda _: np.zeros(75, [("a", "f4")]), "'rews_0.npy' holds [('a', '<f4')], expected"),
            ("acs_0", lambda _: np.zeros(75, int), "some agents have discrete actions and others continuous"),
            ("acs_1", lambda _: np.zeros(75, int), "some agents have discrete actions and others continuous"),
        ],
    )
    def test_arrays_of_something_else(self, name, change, said, folder, refused):
        save(folder, name, change(np.load(folder / f"{name}.npy")))
        assert said in refused(folder, "omar", env="mpe_new")

    def test_an_archive_under_the_name_of_an_array(self, folder, refused):
        with open(folder / "obs_1.npy", "wb") as file:
            np.savez(file, a=np.zeros(3))
        assert "obs_1.npy: expected one array" in refused(folder, "omar", env="mpe_new")

    def test_agents_that_can_do_nothing(self, folder, refused):
        for agent in range(3):
            save(folder, f"acs_{agent}", np.zeros((75, 0)))
        assert "actions are empty" in refused(folder, "omar", env="mpe_new")

    def test_a_folder_of_several_seeds(self, tmp_path, refused):
        for seed in range(2):
            write_omar(tmp_path / "expert" / f"seed_{seed}_data")
        message = refused(tmp_path / "expert", "omar", UsageError, env="mpe_spread_omar")
        assert "name one, for example seed_0_data" in message


class TestPymarl:
    @pytest.fixture
    def file(self, tmp_path):
        write_pymarl(tmp_path / "m.h5")
        return tmp_path / "m.h5"

    @staticmethod
    def replace(path, name, values):
        with h5py.File(path, "r+") as file:
            del file[name]
            if values is not None:
                file[name] = values

    def test_a_missing_array(self, file, refused):
        self.replace(file, "terminated", None)
        assert "array 'terminated' is missing" in refused(file, "pymarl", env="x")

    def test_a_wrong_shape(self, file, refused):
        self.replace(file, "avail_actions", np.ones((3, 7, 4, 3)))
        message = refused(file, "pymarl", env="x")
        assert "array 'avail_actions' has shape [3, 7, 4, 3], expected [3, 7, 2, 3]" in message

    def test_a_wrong_number_of_dimensions(self, file, refused):
        self.replace(file, "obs", np.ones((3, 7, 10)))
        assert "array 'obs' has shape [3, 7, 10], expected 4 dimensions" in refused(file, "pymarl", env="x")

    @pytest.mark.parametrize(
        ("name", "values", "said"),
        [
            ("reward", np.full((3, 7, 1), b"a"), "array 'reward' holds |S1, expected numbers"),
            (
                "obs",
                np.zeros((3, 7, 2, 5), [("r", "f4")]),
                "array 'obs' holds [('r', '<f4')], expected numbers",
            ),
            ("obs", np.zeros((3, 7, 2, 0)), "observations are empty for all agents (2)"),
            ("avail_actions", np.zeros((3, 7, 2, 0)), "actions are empty, or all -1, for all agents (2)"),
        ],
    )
    def test_arrays_of_something_else(self, name, values, said, file, refused):
        self.replace(file, name, values)
        assert said in refused(file, "pymarl", env="x")

    def test_no_agents(self, file, refused):
        for name in ("obs", "actions", "avail_actions"):
            with h5py.File(file) as opened:
                nobody = opened[name][:, :, :0]
            self.replace(file, name, nobody)
        assert "observations are empty for all agents (0)" in refused(file, "pymarl", env="x")

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("actions_onehot", "array 'actions_onehot' has shape [3, 7], expected 4 dimensions"),
            ("actions_onehot/x", "array 'actions_onehot' is missing"),
        ],
    )
    def test_choices_that_are_not_one_hot(self, name, said, file, refused):
        self.replace(file, "avail_actions", None)
        with h5py.File(file, "r+") as opened:
            opened[name] = np.zeros((3, 7))
        assert said in refused(file, "pymarl", env="x")

    def test_filled_rows_with_a_hole(self, file, refused):
        with h5py.File(file, "r+") as opened:
            opened["filled"][1, 2] = 0
        assert "array 'filled', episode 1" in refused(file, "pymarl", env="x")

    def test_an_illegal_action(self, file, refused):
        with h5py.File(file, "r+") as opened:
            opened["avail_actions"][0, 1] = 0
        assert "illegal action taken" in refused(file, "pymarl", env="x")

    def test_a_file_cut_short(self, file, refused):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert "is damaged, or was cut short" in refused(file, "pymarl", env="x")

    def test_continuous_tasks_have_no_such_files(self, file, refused):
        message = refused(file, "pymarl", env="scm_a")
        assert "array 'obs' has shape [3, 7, 2, 5]: 2 agents, scm_a has 4" in message


class TestVault:
    @pytest.fixture
    def folder(self, flashbax_vault, tmp_path):
        shutil.copytree(flashbax_vault[0], tmp_path / "vault")
        return tmp_path / "vault"

    def metadata(self, folder, change):
        path = folder / "metadata.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def test_a_missing_leaf(self, folder, refused):
        self.metadata(folder, lambda content: content["structure_shape"].pop("rewards"))
        message = refused(folder, "vault", env="x")
        assert "array 'rewards' is missing; there are: actions, infos.legals, infos.state" in message

    def test_a_leaf_that_is_only_announced(self, folder, refused):
        self.metadata(folder, lambda content: content["structure_shape"]["infos"].update(alive="(1, 9, 3)"))
        assert "array 'infos.alive' cannot be opened" in refused(folder, "vault", env="x")

    def test_another_version(self, folder, refused):
        self.metadata(folder, lambda content: content.update(version=2.0))
        assert "'metadata.json' has version 2.0: versions 1.x" in refused(folder, "vault", env="x")

    def test_a_version_that_is_no_number(self, folder, refused):
        self.metadata(folder, lambda content: content.update(version=float("inf")))
        assert "has version inf: versions 1.x" in refused(folder, "vault", env="x")

    def test_a_lost_data_file(self, folder, refused):
        largest = max((folder / "d").iterdir(), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:100])
        refused(folder, "vault", env="x")

    def test_several_vaults_in_a_folder(self, folder, tmp_path, refused):
        shutil.copytree(folder, tmp_path / "task.vlt" / "Good")
        shutil.copytree(folder, tmp_path / "task.vlt" / "Poor")
        assert "name one, for example" in refused(tmp_path / "task.vlt", "vault", UsageError, env="x")

    def test_dimensions_of_another_task(self, folder, refused):
        message = refused(folder, "vault", env="mpe_spread")
        assert (
            "array 'observations' has shape [1, 9, 3, 4], mpe_spread has observations of 18 numbers"
            in message
        )


class TestD3rlpy:
    @pytest.fixture
    def file(self, tmp_path):
        """Two episodes of three steps."""
        with h5py.File(tmp_path / "d.h5", "w") as file:
            file["columns"], file["num_episodes"], file["version"] = ["observations"], 2, "2.1"
            for number in range(2):
                for name, width in (("observations", 2), ("actions", 1), ("rewards", 1)):
                    file[f"{name}_{number}"] = np.zeros((3, width), dtype=np.float32)
                file[f"terminated_{number}"] = True
        return tmp_path / "d.h5"

    @pytest.mark.parametrize(
        ("name", "values", "said"),
        [
            ("observations_1", np.zeros((3, 5)), "array 'observations_1' has 5 numbers a step, expected 2"),
            ("actions_1", np.zeros((3, 2)), "array 'actions_1' has 2 numbers a step, expected 1"),
            ("observations_1", np.full((3, 2), b"a"), "array 'observations_1' holds |S1, expected numbers"),
            ("rewards_0", np.zeros((3, 0)), "array 'rewards_0' has shape [3, 0], expected [T, 1]"),
            ("num_episodes", np.array([1, 2]), "d.h5 is damaged, or was cut short"),
        ],
    )
    def test_arrays_of_something_else(self, name, values, said, file, refused):
        with h5py.File(file, "r+") as opened:
            del opened[name]
            opened[name] = values
        assert said in refused(file, "d3rlpy", env="x")

    @pytest.mark.parametrize(
        ("name", "values", "said"),
        [
            ("observations", np.zeros((4, 0)), "observations are empty for all agents (1)"),
            ("rewards", np.zeros((4, 0)), "array 'rewards' has shape [4, 0], expected 4 numbers"),
            ("terminals", np.zeros((4, 2)), "array 'terminals' has shape [4, 2], expected 4 numbers"),
            ("episode_terminals", np.zeros(3), "array 'episode_terminals' has shape [3], expected 4 numbers"),
        ],
    )
    def test_a_flat_file_of_something_else(self, name, values, said, tmp_path, refused):
        flat = {"observations": np.zeros((4, 2)), "actions": np.zeros((4, 1))}
        flat |= {"rewards": np.zeros(4), "terminals": np.zeros(4), name: values}
        with h5py.File(tmp_path / "flat.h5", "w") as file:
            for key, array in flat.items():
                file[key] = array
        assert said in refused(tmp_path / "flat.h5", "d3rlpy", env="x")

    def test_a_digit_that_is_no_number(self, file, tmp_path, bring):
        (tmp_path / "team").mkdir()
        for name in ("²5.h5", "a_10.h5", "a_9.h5"):
            shutil.copy(file, tmp_path / "team" / name)
        assert bring(tmp_path / "team", "d3rlpy", env="x").spec.agents == ("a_9", "a_10", "²5")


class TestOthers:
    def test_a_minari_dataset_without_its_spaces(self, mixed, tmp_path, refused):
        export_dataset(mixed[False], "minari", tmp_path / "m", False, Silent())
        path = tmp_path / "m" / "data" / "metadata.json"
        path.write_text(json.dumps({"minari_version": "0.5.4", "data_format": "hdf5"}))
        assert "lacks what Minari needs" in refused(tmp_path / "m", "minari", env="x")

    def test_a_minari_dataset_that_lost_an_episode(self, mixed, tmp_path, refused):
        export_dataset(mixed[True], "minari", tmp_path / "m", False, Silent())
        with h5py.File(tmp_path / "m" / "data" / "main_data.hdf5", "r+") as file:
            del file["episode_3"]
        assert "is damaged, or was cut short" in refused(tmp_path / "m", "minari")

    @pytest.mark.parametrize("name", ["final/obs", "final/legal", "steps"])
    def test_a_file_beside_an_export_that_lost_an_array(self, name, mixed, tmp_path, refused):
        export_dataset(mixed[True], "vault", tmp_path / "v", False, Silent())
        with h5py.File(tmp_path / "v" / "offmarl.h5", "r+") as file:
            del file[name]
        assert "offmarl.h5 is damaged" in refused(tmp_path / "v", "vault")

    def test_steps_beside_an_export_that_are_no_numbers(self, mixed, tmp_path, refused):
        export_dataset(mixed[True], "vault", tmp_path / "v", False, Silent())
        with h5py.File(tmp_path / "v" / "offmarl.h5", "r+") as file:
            steps = file["steps"][:].astype(float)
            del file["steps"]
            file["steps"] = steps * np.nan
        assert "array 'steps' does not hold" in refused(tmp_path / "v", "vault")

    def test_a_group_in_the_place_of_an_array_of_minari(self, mixed, tmp_path, refused):
        export_dataset(mixed[True], "minari", tmp_path / "m", False, Silent())
        with h5py.File(tmp_path / "m" / "data" / "main_data.hdf5", "r+") as file:
            del file["episode_0/rewards"]
            file.create_group("episode_0/rewards")
        assert "is damaged, or was cut short" in refused(tmp_path / "m", "minari")

    @pytest.mark.parametrize(
        ("form", "flag", "options"),
        [
            ("vault", "--team-reward", {"team_reward": "sum"}),
            ("d3rlpy", "--horizon", {"horizon": 50}),
            ("vault", "--set env.agents", {"env_options": {"agents": 7}}),
        ],
    )
    def test_an_export_of_ours_needs_no_flags(self, form, flag, options, mixed, tmp_path, refused):
        export_dataset(mixed[False], form, tmp_path / "theirs", False, Silent())
        message = refused(tmp_path / "theirs", form, UsageError, **options)
        assert message.endswith(
            f"is an export of offmarl, which knows its task and its rewards: leave out {flag}"
        )

    def test_flags_that_mean_nothing_are_refused(self, flashbax_vault, tmp_path, refused):
        write_pymarl(tmp_path / "m.h5")
        one = refused(tmp_path / "m.h5", "pymarl", UsageError, env="x", team_reward="sum")
        assert "has one reward a step, the team's: leave it out" in one
        known = refused(flashbax_vault[0], "vault", UsageError, env="mpe_spread", horizon=25)
        assert "mpe_spread is known, and the files say where episodes end" in known

    def test_a_d3rlpy_file_that_lost_an_array(self, mixed, tmp_path, refused):
        export_dataset(mixed[False], "d3rlpy", tmp_path / "d", False, Silent())
        with h5py.File(tmp_path / "d" / "scout.h5", "r+") as file:
            del file["actions_3"]
        assert "scout.h5: array 'actions_3' is missing" in refused(tmp_path / "d", "d3rlpy")

    def test_d3rlpy_agents_that_differ_in_length(self, mixed, tmp_path, refused):
        export_dataset(mixed[False], "d3rlpy", tmp_path / "d", False, Silent())
        with h5py.File(tmp_path / "d" / "scout.h5", "r+") as file:
            del file["rewards_3"]
            file["rewards_3"] = np.zeros((2, 1))
        assert "scout.h5: 5 episodes with 15 steps, where agent_10.h5 has 5 with 20" in refused(
            tmp_path / "d", "d3rlpy"
        )

    def test_the_format_that_it_looks_like_is_named(self, mixed, tmp_path, refused):
        write_omar(tmp_path / "omar")
        write_pymarl(tmp_path / "m.h5")
        export_dataset(mixed[True], "vault", tmp_path / "vault", False, Silent())
        export_dataset(mixed[True], "minari", tmp_path / "minari", False, Silent())
        export_dataset(mixed[True], "d3rlpy", tmp_path / "d3rlpy", False, Silent())
        named = {"omar": "omar", "pymarl": "m.h5", "vault": "vault", "minari": "minari", "d3rlpy": "d3rlpy"}
        for form, name in named.items():
            other = "pymarl" if form != "pymarl" else "omar"
            message = refused(tmp_path / name, other, env="x")
            assert message.endswith(f"is not in the format {other}: it looks like --format {form}")

    def test_wrong_requests(self, tmp_path, refused):
        write_pymarl(tmp_path / "m.h5")
        assert "does not exist" in refused(tmp_path / "n.h5", "pymarl", env="x")
        assert "did you mean pymarl" in refused(tmp_path / "m.h5", "pymarll", UsageError, env="x")
        assert "--env NAME" in refused(tmp_path / "m.h5", "pymarl", UsageError)
        assert "no dataset id" in refused(tmp_path / "m.h5", "pymarl", UsageError, env="x", name="hello")
        assert "expected sum or copy" in refused(
            tmp_path / "m.h5", "pymarl", UsageError, env="x", team_reward="mean"
        )
        assert "has no meaning" in refused(
            tmp_path / "m.h5", "pymarl", UsageError, env="x", env_options={"agents": 3}
        )

    def test_every_format_refuses_nonsense(self, tmp_path, refused):
        (tmp_path / "noise.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 20)
        (tmp_path / "empty").mkdir()
        for form in ("omar", "pymarl", "vault", "minari", "d3rlpy"):
            for name in ("noise.h5", "empty"):
                refused(tmp_path / name, form, OffmarlError, env="x")

    def test_a_stopped_import_leaves_nothing(self, tmp_path, refused, monkeypatch):
        from offmarl.data.writer import Writer

        def stop(*_: object) -> None:
            raise KeyboardInterrupt("stopped")

        write_pymarl(tmp_path / "m.h5")
        monkeypatch.setattr(Writer, "append", stop)
        refused(tmp_path / "m.h5", "pymarl", KeyboardInterrupt, env="x")

    def test_a_full_disk_is_not_the_sources_damage(self, tmp_path, refused, monkeypatch):
        from offmarl.data.writer import Writer

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device", str(tmp_path / "imported"))

        write_pymarl(tmp_path / "m.h5")
        monkeypatch.setattr(Writer, "append", fail)
        assert "damaged" not in refused(tmp_path / "m.h5", "pymarl", OSError, env="x")

    @pytest.mark.parametrize(("form", "package"), [("vault", "tensorstore"), ("minari", "minari")])
    def test_a_missing_package_is_one_line(self, form, package, mixed, tmp_path, refused, monkeypatch):
        import sys

        export_dataset(mixed[True], form, tmp_path / "theirs", False, Silent())
        monkeypatch.setitem(sys.modules, package, None)
        assert f"pip install 'offmarl[{form}]'" in refused(tmp_path / "theirs", form, UsageError)
