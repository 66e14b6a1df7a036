"""Films of what one unit makes of its neighbours."""

import numpy as np
import pytest
import torch
from PIL import Image

from offmarl.envs.magent import describe
from offmarl.envs.magent_render import renderers, scene
from offmarl.errors import UsageError
from offmarl.learners.registry import make_learner
from offmarl.report import film
from offmarl.report.episode import ShownEpisode
from offmarl.report.film import film_frames
from offmarl.report.neighbours import NeighbourWeights, around, neighbour_weights, require_weights
from offmarl.report.scene import Body, Scene, scene_of

SPEC = describe("magent_battle", {"agents": 9, "horizon": 12})


def learner(name="cmfq", seeds=(0,)):
    return make_learner(name, SPEC, {"hidden": [8]}, seeds)


def states() -> torch.Tensor:
    """Two frames [2, D]: everybody has just stood still; in the second red_1 is dead."""
    grid = next(iter(renderers(SPEC).values())).grid
    state = torch.zeros(2, SPEC.state_dim)
    parts = scene(grid, state)
    places = torch.cat([torch.from_numpy(group.places) for group in grid.groups]).float()
    parts.x[:], parts.y[:] = places.T[0], places.T[1]
    parts.action[:] = 6
    parts.health[:] = 1
    parts.health[1, 1] = 0
    return state


def test_weights_find_their_bodies_and_add_up_to_one():
    state = states()
    shown = scene_of(SPEC, None, None, state.numpy())
    found = neighbour_weights(learner(), SPEC, "red_0", state, shown)
    assert shown.bodies[found.unit].name == "red_0"
    assert np.nansum(found.weight, axis=1) == pytest.approx([1, 1], abs=1e-5)
    names = [body.name for body in shown.bodies]
    assert np.isnan(found.weight[:, [name.startswith("blue") for name in names]]).all()  # scope: own
    dead = names.index("red_1")
    assert found.weight[0, dead] > 0
    assert np.isnan(found.weight[1, dead])
    grid = renderers(SPEC)["red"].grid
    near = renderers(SPEC)["red"].neighbours(state)[0, 0]
    assert {names[body] for body in np.flatnonzero(~np.isnan(found.weight[0]))} == {
        grid.unit_names()[unit] for unit in near.nonzero().flatten().tolist()
    }


def test_the_view_follows_the_unit_and_stays_where_it_dies():
    body = Body("red_0", "agent", 1.0)
    path = np.array([[5.0, 5.0], [6.0, 5.0], [np.nan, np.nan]])
    other = np.array([[5.0, 8.0], [6.0, 8.0], [6.0, 30.0]])
    seen = around(Scene((body, Body("red_1", "agent", 1.0)), np.stack([path, other], 1)), 0, SPEC)
    assert seen.position[:2, 0].tolist() == [[0, 0], [0, 0]]
    assert seen.position[:2, 1].tolist() == [[0, 3], [0, 3]]
    assert np.isnan(seen.position[2]).all()  # red_1 is far from where red_0 died


def test_neighbours_are_the_darker_the_more_they_count():
    bodies = tuple(
        Body(name, kind, 0.4) for name, kind in (("red_0", "agent"), ("red_1", "agent"), ("blue_0", "enemy"))
    )
    position = np.array([[[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0]]] * 2)
    weight = np.array([[np.nan, 0.25, 0.75], [np.nan, 1.0, np.nan]])
    reward = np.zeros((1, 2))
    episode = ShownEpisode(
        "episode 0: red_0", "run", ("red_0", "red_1"), Scene(bodies, position), reward.sum(1), reward, "true",
        weights=NeighbourWeights(0, weight),
    )  # fmt: skip
    first, last = (np.asarray(frame)[:, : -film.PANEL] for frame in film_frames(episode))

    def pixels(image, colour):
        red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
        return int((image == (red, green, blue)).all(-1).sum())

    full, quarter = film._blend(film.PAPER, film.COUNTS, 1.0), film._blend(film.PAPER, film.COUNTS, 0.25)
    assert full == film.COUNTS.lower()
    for image in (first, last):
        assert pixels(image, film.WATCHED) > 300
    assert pixels(first, quarter) > 300
    assert pixels(last, quarter) == 0
    assert pixels(last, full) > 300
    assert pixels(last, film.FILLS["enemy"]) > 300  # no neighbour any more


def test_who_weighs_nobody_is_told_in_a_line():
    with pytest.raises(UsageError, match="looks at no neighbours"):
        require_weights(learner("idqn"), SPEC, "red_0")
    with pytest.raises(UsageError, match="draws its weights anew"):
        require_weights(learner("random_mfq"), SPEC, "red_0")
    with pytest.raises(UsageError, match="red_8"):
        require_weights(learner(), SPEC, "red_9")


def test_a_run_is_filmed_with_the_weights_of_one_unit(succeed, offmarl, tmp_path):
    pytest.importorskip("magent2")
    succeed(
        "collect --env magent_battle --quality random --steps 20 --num-envs 2 --set env.agents=9 --set env.horizon=10"
    )
    run = succeed(
        "train --learner cmfq --rewards true --steps 2 --set train.batch_size=16 --set learner.hidden=[8]"
    )["run"]
    told = succeed(f"watch {run} --weights red_4 --out {tmp_path / 'weights.gif'}")
    with Image.open(tmp_path / "weights.gif") as image:
        assert image.n_frames == told["frames"] == 11
    for arguments, said in (
        (f"{run} --weights blue_0", "red_0"),
        ("magent_battle/random-agents-9-horizon-10-v0 --weights red_0", "runs"),
    ):
        done = offmarl(f"watch {arguments}")
        assert done.returncode == 2
        assert said in done.stderr
