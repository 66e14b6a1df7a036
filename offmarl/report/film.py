"""An episode as a moving picture: the world, and a bar for every agent's reward in the step just taken.

Drawn with Pillow at twice the size and halved, which smooths edges. Shapes: T steps, N agents, M bodies.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from offmarl.atomic import replacing
from offmarl.errors import UsageError
from offmarl.report.charts import AGENT_COLOURS
from offmarl.report.episode import ShownEpisode
from offmarl.report.neighbours import NeighbourWeights
from offmarl.report.scene import Body
from offmarl.report.style import BLACK, BLUE, GREEN, GREY, INK
from offmarl.reporter import Progress

FORMATS = (".gif", ".webp", ".mp4")
FRAMES_PER_SECOND = 10  # a GIF counts in hundredths of a second
FINE = 2  # pixels drawn for one that is kept, each way
HEIGHT, PANEL, MARGIN, FOOT = 400, 240, 12, 28  # pixels; a film without a world is PANEL wide
TRAIL = 12  # frames
PALETTE_FRAMES = 8  # beside the last, of which a GIF takes its colours
MOST_BARS = 20  # agents that have a bar
LEAST_RADIUS = 4.0  # pixels, so that small things can be seen
PAPER, FAINT, ZERO = "#ffffff", "#e9ecef", "#888888"
WATCHED, COUNTS = GREEN, BLUE  # whose neighbours are weighed; a neighbour, the darker the more it counts
FILLS = {"obstacle": "#b6bec7", "forest": "#d3efe5", "food": GREEN, "prey": BLACK, "enemy": BLACK}
MP4_BLOCK = 16  # sides of an MP4 are multiples of it


def check_format(path: Path) -> None:
    """Raise `UsageError` for a film that cannot be written here, before any work."""
    if path.suffix not in FORMATS:
        raise UsageError(f"--out {path}: expected a name that ends in {', '.join(FORMATS)}")
    if path.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise UsageError('MP4 needs ffmpeg: pip install "offmarl[mp4]" (.gif and .webp need nothing)')


def write_film(
    episode: ShownEpisode,
    path: Path,
    frames_per_second: int = FRAMES_PER_SECOND,
    progress: Progress | None = None,
) -> int:
    """Write an episode as GIF, WebP or MP4, by the suffix of `path`; returns the number of frames.

    Raises `UsageError` for another suffix, for MP4 where ffmpeg is not installed, and for an episode of which
    nobody knows what it looks like.
    """
    check_format(path)
    if episode.scene is None and episode.pictures is None:
        raise UsageError(
            f"{episode.source} does not say where the agents are, and the task does not draw itself: there is "
            "nothing to show"
        )
    frames = film_frames(episode, progress)
    duration = 1000 // frames_per_second  # milliseconds
    with replacing(path) as temporary:
        if path.suffix == ".mp4":
            _write_mp4(frames, temporary, frames_per_second)
        else:
            images = list(frames)
            options: dict[str, Any] = (
                {"quality": 85, "method": 1} if path.suffix == ".webp" else {"disposal": 1}
            )
            if path.suffix == ".gif":
                palette = _together(images).quantize(255, method=Image.Quantize.MAXCOVERAGE)
                images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
            images[0].save(
                temporary, save_all=True, append_images=images[1:], duration=duration, loop=0, **options
            )
    return episode.steps + 1


def film_frames(episode: ShownEpisode, progress: Progress | None = None) -> Iterator[Image.Image]:
    """Draw the T + 1 frames of an episode; `progress` counts them."""
    drawing = _Drawing(episode)
    for frame in range(episode.steps + 1):
        yield drawing.frame(frame)
        if progress is not None:
            progress(frame + 1, episode.steps + 1)


def _together(images: list[Image.Image]) -> Image.Image:
    """Some of the images below each other, the last among them: all colours of the film, or nearly."""
    some = [images[-1], *images[1 : -1 : max(1, len(images) // PALETTE_FRAMES)]]
    width, height = images[-1].size
    sheet = Image.new("RGB", (width, height * len(some)))
    for place, image in enumerate(some):
        sheet.paste(image, (0, place * height))
    return sheet


def _write_mp4(frames: Iterator[Image.Image], path: Path, frames_per_second: int) -> None:
    import imageio_ffmpeg

    first = next(frames)
    width, height = (-(-side // MP4_BLOCK) * MP4_BLOCK for side in first.size)
    size = (width, height)
    writer = imageio_ffmpeg.write_frames(
        str(path), size, fps=frames_per_second, quality=8, macro_block_size=1
    )
    writer.send(None)
    try:
        for image in (first, *frames):
            canvas = Image.new("RGB", size, PAPER)
            canvas.paste(image)
            writer.send(canvas.tobytes())
    finally:
        writer.close()


class _Drawing:
    """What stays the same in all frames, drawn once, and how the rest is drawn over it."""

    def __init__(self, episode: ShownEpisode) -> None:
        self.episode = episode
        self._font, self._small = (ImageFont.load_default(size * FINE) for size in (13, 11))
        self._side = HEIGHT - FOOT
        self._wide = self._side + MARGIN
        if episode.scene is not None:
            self._left, right, self._bottom, self._top = episode.scene.limits
            self._scale = (self._side - MARGIN) / (right - self._left)  # pixels a unit
        else:
            assert episode.pictures is not None
            height, width = episode.pictures.shape[1:3]
            self._wide = max(1, round(width * (self._side - MARGIN) / height)) + 2 * MARGIN
        rewards = [episode.reward, *([] if episode.truth is None else [episode.truth])]
        self._low = min(0.0, *(float(np.nanmin(one)) for one in rewards))
        self._high = max(0.0, *(float(np.nanmax(one)) for one in rewards))
        self._bars = min(len(episode.agents), MOST_BARS)
        self._pitch = min(34.0, (self._side - 40) / self._bars)
        self._names = 18.0 + 7.0 * max(len(agent) for agent in episode.agents[: self._bars])
        self._names = min(self._names, 0.5 * PANEL)
        self._paper = self._background()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._wide + PANEL, HEIGHT

    def frame(self, frame: int) -> Image.Image:
        """Draw one instant."""
        image = self._paper.copy()
        draw = ImageDraw.Draw(image)
        if self.episode.scene is not None:
            self._draw_world(draw, frame)
        else:
            assert self.episode.pictures is not None
            picture = Image.fromarray(self.episode.pictures[frame])
            size = ((self._wide - 2 * MARGIN) * FINE, (self._side - MARGIN) * FINE)
            image.paste(picture.resize(size), (MARGIN * FINE, MARGIN * FINE))
        self._draw_bars(draw, frame)
        said = f"step {frame} of {self.episode.steps}"
        self._text(draw, MARGIN, HEIGHT - FOOT / 2 - 2, said, self._font, "lm")
        return image.reduce(FINE)

    def _background(self) -> Image.Image:
        width, height = self.size
        image = Image.new("RGB", (width * FINE, height * FINE), PAPER)
        draw = ImageDraw.Draw(image)
        if self.episode.scene is not None:
            box = (MARGIN / 2, MARGIN / 2, self._wide - MARGIN / 2, self._side)
            draw.rectangle([FINE * side for side in box], outline=FAINT, width=FINE)
        x = self._wide + 8
        told = {"true": "true rewards", "mean": "team reward in equal shares"}
        name = told.get(self.episode.reward_name, f"rewards by {self.episode.reward_name}")
        self._text(
            draw, x, 14, name + (" (line: true)" if self._truth() is not None else ""), self._small, "lm"
        )
        for agent, title in enumerate(self.episode.agents[: self._bars]):
            y = self._bar_at(agent)
            if self._pitch >= 11:
                self._text(draw, x, y, f"{agent + 1} {title}"[: int(self._names / 6.4)], self._small, "lm")
        zero = self._bar_x(0.0)
        line = (zero, self._bar_at(0) - self._pitch / 2, zero, self._bar_at(self._bars - 1) + self._pitch / 2)
        draw.line([FINE * side for side in line], fill=ZERO, width=FINE)
        self._text(draw, self._wide + 8, HEIGHT - FOOT / 2 - 2, self.episode.title[:38], self._small, "lm")
        return image

    def _draw_world(self, draw: ImageDraw.ImageDraw, frame: int) -> None:
        scene = self.episode.scene
        assert scene is not None
        agents = len(self.episode.agents)
        for body in scene.order():
            x, y = self._place(scene.position[frame, body])
            if not np.isfinite(x):
                continue
            if self.episode.weights is not None:
                self._draw_weighed(draw, x, y, body, frame, self.episode.weights)
                continue
            if body < agents:
                path = self._place(scene.position[max(0, frame - TRAIL) : frame + 1, body])
                path = path[np.isfinite(path).all(1)]
                if len(path) > 1:
                    points = [(FINE * px, FINE * py) for px, py in path.tolist()]
                    draw.line(points, fill=_colour(body), width=2 * FINE, joint="curve")
            self._disc(draw, x, y, scene.bodies[body], body if body < agents else None)

    def _draw_weighed(
        self, draw: ImageDraw.ImageDraw, x: float, y: float, body: int, frame: int, weights: NeighbourWeights
    ) -> None:
        """A unit with its weight for the one in the middle, in hundredths, where it is a neighbour of that."""
        scene = self.episode.scene
        assert scene is not None
        radius = scene.bodies[body].radius * self._scale
        box = [FINE * side for side in (x - radius, y - radius, x + radius, y + radius)]
        weight = float(weights.weight[frame, body])
        mine = body < len(self.episode.agents)
        if body == weights.unit:
            fill = WATCHED
        elif np.isnan(weight):
            fill = FAINT if mine else FILLS["enemy"]
        else:
            fill = _blend(PAPER, COUNTS, weight / weights.most)
        shape = draw.ellipse if mine else draw.rectangle
        shape(box, fill=fill, outline=INK, width=FINE)
        if not np.isnan(weight):
            ink = PAPER if weight / weights.most > 0.5 else BLACK
            self._text(draw, x, y, f"{100 * weight:.0f}", self._small, "mm", ink)

    def _disc(self, draw: ImageDraw.ImageDraw, x: float, y: float, body: Body, agent: int | None) -> None:
        """A body at its true size; what it is shows in its shape."""
        radius = max(LEAST_RADIUS, body.radius * self._scale)
        few = len(self.episode.agents) <= MOST_BARS
        if agent is not None and few:
            radius = max(7.0, radius)
        box = [FINE * side for side in (x - radius, y - radius, x + radius, y + radius)]
        if agent is not None:
            draw.ellipse(box, fill=_colour(agent), outline=INK, width=FINE)
            if few:
                self._text(draw, x, y, str(agent + 1), self._small, "mm", BLACK)
        elif body.kind in ("landmark", "target", "other"):
            colour = INK if body.owner is None else _colour(body.owner)
            draw.line(box, fill=colour, width=2 * FINE)
            draw.line([box[0], box[3], box[2], box[1]], fill=colour, width=2 * FINE)
        elif body.kind == "enemy":
            draw.rectangle(box, fill=FILLS["enemy"])
        elif body.kind == "food":
            middle = (FINE * x, FINE * y)
            points = [(middle[0], box[1]), (box[2], middle[1]), (middle[0], box[3]), (box[0], middle[1])]
            draw.polygon(points, fill=FILLS["food"])
        else:
            draw.ellipse(box, fill=FILLS.get(body.kind, GREY), outline=GREY, width=FINE)

    def _draw_bars(self, draw: ImageDraw.ImageDraw, frame: int) -> None:
        """What every agent earned on the way to this frame; nothing yet in the first."""
        if frame == 0:
            return
        reward, truth = self.episode.reward[frame - 1], self._truth()
        half = min(9.0, 0.36 * self._pitch)
        zero = self._bar_x(0.0)
        for agent in range(self._bars):
            y, x = self._bar_at(agent), self._bar_x(float(reward[agent]))
            box = (min(zero, x), y - half, max(zero, x), y + half)
            draw.rectangle([FINE * side for side in box], fill=_colour(agent), outline=INK, width=1)
            if truth is not None:
                at = self._bar_x(float(truth[frame - 1, agent]))
                line = (at, y - half - 2, at, y + half + 2)
                draw.line([FINE * side for side in line], fill=BLACK, width=2 * FINE)

    def _truth(self) -> np.ndarray | None:
        """The true rewards, where the bars are somebody else's account."""
        return None if self.episode.reward_name == "true" else self.episode.truth

    def _place(self, position: np.ndarray) -> np.ndarray:
        """World [..., 2] to pixels; up is up."""
        corner = np.array([self._left, self._top])
        pixels: np.ndarray = MARGIN + (position - corner) * np.array([self._scale, -self._scale])
        return pixels

    def _bar_x(self, reward: float) -> float:
        first, last = self._wide + 8 + self._names, self._wide + PANEL - MARGIN
        return first + (last - first) * (reward - self._low) / (self._high - self._low or 1.0)

    def _bar_at(self, agent: int) -> float:
        return 32 + (agent + 0.5) * self._pitch

    def _text(
        self,
        draw: ImageDraw.ImageDraw,
        x: float,
        y: float,
        text: str,
        font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
        anchor: str,
        colour: str = INK,
    ) -> None:
        draw.text((FINE * x, FINE * y), text, fill=colour, font=font, anchor=anchor)


def _blend(first: str, second: str, share: float) -> str:
    """A colour between two, `share` of the way."""
    ends = [np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) for colour in (first, second)]
    red, green, blue = (ends[0] + share * (ends[1] - ends[0])).round().astype(int).tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def _colour(agent: int) -> str:
    return AGENT_COLOURS[agent % len(AGENT_COLOURS)]
