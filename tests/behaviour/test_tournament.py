"""Games between contestants: who wins what from which side, what is kept, and what cannot be played."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from offmarl.behaviour import tournament
from offmarl.behaviour.checkpoint import save_policy
from offmarl.behaviour.contestants import Contestant, find_contestant, find_contestants
from offmarl.behaviour.games import Outcome
from offmarl.behaviour.online import Checkpoint
from offmarl.behaviour.self_play import self_play_config, self_play_learner
from offmarl.behaviour.tournament import Rules, play_pair, play_tournament
from offmarl.envs.magent import describe
from offmarl.errors import UsageError
from offmarl.learners.registry import make_learner
from offmarl.reporter import Silent
from offmarl.training.checkpoint import read_tensors, write_tensors

pytest.importorskip("magent2")

RULES = Rules(options={"horizon": 30}, games=8)
RANDOM, CHARGE = find_contestant("random", "magent_battle"), find_contestant("charge", "magent_battle")


def learner(env="magent_battle", seeds=(0,), **options):
    spec = describe(env, {"agents": 4, "background": "none", **options})
    return make_learner("mfq", spec, {"hidden": [8]}, seeds)


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory):
    """The file of an untrained policy of a battle."""
    config = self_play_config({"algorithm": "cmfq", "hidden": [8]})
    spec = describe("magent_battle", {"agents": 4, "background": "none"})
    untrained = self_play_learner(spec, config, 0, "cpu")
    path = tmp_path_factory.mktemp("policy") / "cmfq" / "expert.safetensors"
    save_policy(path, spec, config, 0, Checkpoint(1, 0.0, untrained.state_dict()))
    return path


def scripted_games(monkeypatch, results):
    """Let games end as `results` says: by who plays the two sides, the shares of both that live."""
    seen = []

    def play(spec, players, who, seed, device, on_step):
        seen.append(who)
        alive = torch.tensor([results[tuple(pair)] for pair in who.tolist()])
        steps = torch.full((len(who),), 10)
        return Outcome(episode_return=10 * alive, alive=alive, steps=steps)

    monkeypatch.setattr(tournament, "play", play)
    return seen


def test_sides_are_swapped_and_every_seed_meets_every_seed(monkeypatch):
    a = Contestant("a", "1", (5, 6), learner(seeds=(5, 6)))
    b = Contestant("b", "2", (7,), learner())
    # Players 0 and 1 are a's, 2 is b's. Player 0 always wins, player 1 only from the second side.
    results = {(0, 2): (0.5, 0.0), (2, 0): (0.0, 1.0), (1, 2): (0.0, 0.25), (2, 1): (0.25, 0.75)}
    seen = scripted_games(monkeypatch, results)
    pair = play_pair(a, b, 4, replace(RULES, games=7))
    (who,) = seen
    assert sorted(map(tuple, who.tolist())) == sorted([*results] * 2)  # seven are rounded up
    assert pair.games == 8
    assert pair.win_rate_by_seed == ((1.0,), (0.5,))
    assert pair.win_rate_by_side == (0.5, 1.0)
    assert (pair.win_rate, pair.draw_rate, pair.loss_rate) == (0.75, 0.0, 0.25)
    assert pair.annihilated == 0.5
    assert pair.enemies_left == pytest.approx((0 + 0 + 0.25 + 0.25) / 4)
    assert pair.enemies_left_number == pytest.approx(0.5)
    assert pair.own_left == pytest.approx((0.5 + 1 + 0 + 0.75) / 4)
    assert pair.a_reward == pytest.approx((0.25, 0.875))  # on the first side, on the second
    assert pair.b_reward == pytest.approx((0.125, 0.125))
    assert (pair.a_seeds, pair.b_seeds, pair.a_trained_on) == ((5, 6), (7,), 4)


@pytest.mark.parametrize(("block", "rounds"), [(1 << 25, 1), (1 << 10, 2)])
def test_games_that_do_not_fit_at_once_are_no_more_games(monkeypatch, block, rounds):
    monkeypatch.setattr(tournament, "_BLOCK", block)
    seen = scripted_games(monkeypatch, {(0, 1): (1.0, 0.0), (1, 0): (0.0, 1.0)})
    assert play_pair(RANDOM, CHARGE, 4, replace(RULES, games=4)).games == 4
    assert len(seen) == rounds


def test_the_interval_is_wilsons(monkeypatch):
    scripted_games(monkeypatch, {(0, 1): (1.0, 0.0), (1, 0): (0.5, 0.5)})
    pair = play_pair(RANDOM, CHARGE, 4, replace(RULES, games=10))
    assert (pair.win_rate, pair.draw_rate, pair.points) == (0.5, 0.5, 0.75)
    z, n = 1.959964, 10  # Wilson 1927: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    half = z * (0.25 / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    assert pair.win_interval == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_the_charge_beats_random_choices_from_both_sides_and_the_same_seed_gives_the_same_games():
    pair = play_pair(RANDOM, CHARGE, 4, replace(RULES, options={}))
    assert pair.loss_rate == 1
    assert pair.win_rate_by_side == (0, 0)
    again = play_pair(RANDOM, CHARGE, 4, replace(RULES, options={}))
    assert again.model_copy(update={"seconds": pair.seconds}) == pair


def test_a_policy_plays_with_more_units_than_it_was_trained_with(policy_file):
    contestant = find_contestant(str(policy_file), "magent_battle")
    assert (contestant.name, contestant.trained_on) == ("cmfq/expert", 4)
    pair = play_pair(contestant, CHARGE, 9, replace(RULES, games=2))
    assert (pair.agents, pair.a_trained_on, pair.games) == (9, 4, 2)
    assert 0 <= pair.enemies_left_number <= 9


def test_in_a_pursuit_each_plays_the_sides_that_it_knows():
    rules = Rules("magent_pursuit", {"horizon": 10}, games=4)
    hunters = Contestant("hunters", "1", (0,), learner("magent_pursuit", background="prey"))
    pair = play_pair(hunters, RANDOM, 4, rules)
    assert pair.win_rate is None
    assert pair.a_reward[0] is not None
    assert pair.a_reward[1] is None  # nobody taught it to flee
    assert pair.b_reward[0] is None
    assert pair.games == 4
    with pytest.raises(UsageError, match="prey"):
        play_pair(hunters, hunters, 4, rules)


def test_what_was_played_is_kept_and_a_damaged_file_is_played_again(monkeypatch, tmp_path):
    played = []

    def counting(a, b, agents, rules, on_step=None):
        played.append((a.name, b.name, agents))
        return play_pair(a, b, agents, rules, on_step)

    monkeypatch.setattr(tournament, "play_pair", counting)
    rules = replace(RULES, games=2)
    pairs = play_tournament([RANDOM, CHARGE], [9, 4], rules, tmp_path, Silent())
    assert [pair.agents for pair in pairs] == [4, 9]
    assert played == [("random", "charge", 4), ("random", "charge", 9)]
    assert play_tournament([RANDOM, CHARGE], [4, 9], rules, tmp_path, Silent()) == pairs
    assert len(played) == 2
    damaged = next(tmp_path.glob("random-charge-9-*.json"))
    damaged.write_text("{")
    play_tournament([RANDOM, CHARGE], [4, 9], rules, tmp_path, Silent())
    assert played[2:] == [("random", "charge", 9)]
    play_tournament([RANDOM, CHARGE], [4], replace(rules, seed=1), tmp_path, Silent())
    assert played[3:] == [("random", "charge", 4)]


def test_two_of_one_name_are_told_apart_before_they_play(tmp_path):
    same = [Contestant("cmfq/expert", "1"), Contestant("cmfq/expert", "2")]
    with pytest.raises(UsageError, match="two contestants are called cmfq/expert: give one"):
        play_tournament(same, [4], RULES, tmp_path, Silent())


def test_who_plays_alike_is_the_same_and_who_does_not_gets_the_name_that_was_given(policy_file, tmp_path):
    metadata, tensors = read_tensors(policy_file, "policy", "cpu")
    twin, other = (tmp_path / name / "cmfq" / "expert.safetensors" for name in ("twin", "other"))
    for path in (twin, other):
        path.parent.mkdir(parents=True)
    write_tensors(twin, tensors, dict(reversed(metadata.items())))
    changed = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_tensors(other, changed, metadata)
    one, same, different = find_contestants([str(policy_file), str(twin), str(other)], "magent_battle")
    assert one.identity == same.identity != different.identity
    assert [one.name, different.name] == [str(policy_file), str(other)]
    assert find_contestant(str(twin), "magent_battle").name == "cmfq/expert"


def test_a_folder_that_cannot_be_written_into_is_told_before_a_game(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"games cannot be written into .*file: File exists"):
        play_tournament([RANDOM, CHARGE], [4], RULES, tmp_path / "file", Silent())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("random", "two contestants"),
        ("random random", "named twice"),
        ("random nobody", "nobody"),
        ("random charge --env mpe_tag", "magent_battle"),
        ("random charge --env magent_gather", "magent_battle"),
        ("random charge --agents few", "--agents few"),
        ("random charge --agents 64 --set env.map_size=10", "do not fit"),
        ("random charge --set env.agents=5", "--agents"),
        ("random charge --figure table.txt", ".png"),
    ],
)
def test_wrong_use_is_told_in_a_line(offmarl, arguments, said):
    done = offmarl(f"tournament {arguments}")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_of_another_task_is_refused(offmarl, succeed):
    succeed("collect --env mpe_targets --quality random --steps 100 --num-envs 2 --set env.agents=2")
    run = succeed("train --learner bc --rewards team --steps 2 --set train.batch_size=16")["run"]
    done = offmarl(f"tournament random {run}")
    assert done.returncode == 2
    assert "was trained in mpe_targets, these games are played in magent_battle" in done.stderr


def test_a_tournament_on_the_command_line(policy_file, offmarl, succeed, tmp_path):
    command = (
        f"tournament random charge {policy_file} --agents 4,9 --games 2 --set env.horizon=10 --out {tmp_path}"
    )
    answer = succeed(f"{command} --figure {tmp_path / 'table.png'}")
    assert [(pair["a"], pair["b"], pair["agents"]) for pair in answer["pairs"]] == [
        (a, b, agents)
        for agents in (4, 9)
        for a, b in (("random", "charge"), ("random", "cmfq/expert"), ("charge", "cmfq/expert"))
    ]
    assert {"games", "win_rate", "draw_rate", "enemies_left"} <= answer["pairs"][0].keys()
    assert len(list(tmp_path.glob("*.json"))) == 6
    assert json.loads(next(tmp_path.glob("charge-cmfq_expert-9-*.json")).read_text())["b_trained_on"] == 4
    with Image.open(tmp_path / "table.png") as figure:
        assert min(figure.size) > 200
    told = offmarl(command)
    assert "6 of 6 pairs were played before" in told.stderr
    assert "4 agents" in told.stdout  # what the policy was trained on


def test_who_plays_both_armies_is_told_what_to_do_and_what_wins_mean(offmarl):
    options = "--set env.agents=5 --set env.background=none --set env.horizon=10"
    collected = offmarl(f"collect --env magent_battle --quality random --steps 20 --num-envs 2 {options}")
    following = collected.stdout.partition("next: offmarl ")[2].strip()
    assert following.endswith("--learner cmfq --rewards true")
    small = "--steps 2 --set train.batch_size=16 --set learner.hidden=[8]"
    assert offmarl(f"{following} {small}").returncode == 0
    assert "both sides were played by the policy itself" in offmarl("evaluate --episodes 1").stdout
