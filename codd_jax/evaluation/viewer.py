"""Recorded generations as files: JSON to keep and compare, and one HTML page that replays them by itself."""

import dataclasses
import json
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

from codd_jax.evaluation.results import write_json

FORMAT = "codd_jax replay 1"
_PAGE = pathlib.Path(__file__).with_name("viewer.html")


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a viewer shows.

    Attributes:
      prompt: as text, with its chat markers.
      about: a line on model and settings.
      trajectories: `trajectory.Trajectory` as plain data, each in its own panel; a "note" stands with its answer.
    """

    prompt: str
    about: str
    trajectories: Sequence[Mapping[str, Any]]


def make_replay(prompt: str, about: str, trajectories: Sequence[Any], notes: Sequence[str] = ()) -> Replay:
    """A replay of recorded `trajectory.Trajectory`s; `notes` stand with their answers.

    Raises:
      ValueError: there is nothing to show.
    """
    if not trajectories:
        raise ValueError("there is no trajectory to replay; record one first")
    plain = []
    for number, one in enumerate(trajectories):
        content = json.loads(json.dumps(dataclasses.asdict(one)))
        plain.append({**content, "note": notes[number] if number < len(notes) else ""})
    return Replay(prompt, about, plain)


def write_replay(replay: Replay, folder: str | pathlib.Path, name: str = "replay") -> pathlib.Path:
    """Writes `name`.json and `name`.html into a folder, which is made, and returns the page's path."""
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {"format": FORMAT, **dataclasses.asdict(replay)})
    page = folder / f"{name}.html"
    page.write_text(to_html(replay), encoding="utf-8")
    return page


def read_replay(path: str | pathlib.Path) -> Replay:
    """A replay from its JSON file.

    Raises:
      FileNotFoundError: it is not there. ValueError: it is no replay, or a damaged one.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it is the JSON file beside a replay's page")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError("another format")
        replay = Replay(content["prompt"], content["about"], content["trajectories"])
        for one in replay.trajectories:
            _check(one)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no replay ({FORMAT}): {error!r}") from None
    if not replay.trajectories:
        raise ValueError(f"{path} holds no trajectory")
    return replay


def _check(one: Mapping[str, Any]) -> None:
    """Raises where a trajectory is not what the page reads."""
    for name, kind in (("title", str), ("length", int), ("steps", list), ("answer", list), ("pieces", dict)):
        if not isinstance(one[name], kind):
            raise ValueError(f"{name} is {one[name]!r}")
    for step in one["steps"]:
        sizes = {len(step[name]) for name in ("positions", "tokens", "probabilities")}
        if len(sizes) != 1 or len(step["block"]) != 2:
            raise ValueError("a step's lists differ in length")
        if not all({"start", "end", "used"} <= window.keys() for window in step["windows"]):
            raise ValueError("a window lacks start, end or used")
        if not all(str(token) in one["pieces"] for token in step["tokens"]):
            raise ValueError("a token has no text")


def to_html(replay: Replay) -> str:
    """The page. What was generated or asked reaches it as data alone: no text can end the script or become markup."""
    data = json.dumps(dataclasses.asdict(replay), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    return string.Template(_PAGE.read_text(encoding="utf-8")).substitute(data=data)


def answer_ids(one: Mapping[str, Any]) -> list[int]:
    """The ids that a trajectory ends with, put together from its steps as the page does.

    Raises:
      ValueError: they are not its answer.
    """
    cells: list[int | None] = [None] * one["length"]
    for step in one["steps"]:
        for place, token in zip(step["positions"], step["tokens"], strict=True):
            if place >= 0:
                cells[place] = token
    filled = [token for token in cells if token is not None][: len(one["answer"])]
    if filled != list(one["answer"]):
        raise ValueError(f"{one['title']}: its steps do not add up to its answer")
    return filled
