"""Denoising in a terminal, as it happens or again from a file: the panels of the viewer's page in text."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from codd_jax.evaluation.trajectory import Recorder, Step, Trajectory, title

# From the first steps to the last, as on the page.
_COLOURS = ("#e8c84f", "#8cc665", "#45b3b3", "#6c8fe0", "#b57bd6")
_MASK = "░"
# Special tokens, mostly one end token after the other.
_NAME = re.compile(r"<[^<>\s]*>")


class _View:
    """One generation as it stands, ready to draw."""

    def __init__(self, name: str, length: int, total: int):
        self.name, self.length, self.total = name, length, max(total, 1)
        self.cells: list[tuple[str, int] | None] = [None] * length
        self.steps = 0
        self.last: Mapping[str, Any] | None = None

    def take(self, step: Mapping[str, Any], pieces: Mapping[str, str]) -> None:
        """Fills in what a step has fixed."""
        self.steps += 1
        self.last = step
        for place, token in zip(step["positions"], step["tokens"], strict=True):
            if place >= 0:
                self.cells[place] = (pieces[str(token)], self.steps)

    def draw(self, width: int) -> Panel:
        """The panel."""
        text = Text(overflow="fold")
        for place, cell in enumerate(self.cells):
            if cell is None:
                text.append(_MASK, style="bright_black")
                continue
            piece, step = cell
            if _NAME.fullmatch(piece):
                text.append("·", style="bright_black")
                continue
            style = _COLOURS[min(len(_COLOURS) * step // (self.total + 1), len(_COLOURS) - 1)]
            fresh = " reverse" if step == self.steps else ""
            text.append(piece, style=f"{style}{fresh}{self._underline(place)}")
        filled = sum(cell is not None for cell in self.cells)
        state = f"step {self.steps}, {filled} of {self.length} tokens, {filled / max(self.steps, 1):.2f} a pass"
        if self.last and self.last["windows"]:
            draws = any(window["used"] for window in self.last["windows"])
            state += ", the circuit draws" if draws else ", the circuit rests"
        return Panel(Group(Text(state, style="dim"), Text(), text), title=Text(self.name, style="bold"), width=width)

    def _underline(self, place: int) -> str:
        """The underline of a token in a window in which the circuit draws."""
        windows = self.last["windows"] if self.last else ()
        return " underline" if any(w["used"] and w["start"] <= place < w["end"] for w in windows) else ""


def live(recorders: Sequence[Recorder], *, console: Console | None = None, delay: float = 0.0) -> list[Trajectory]:
    """Decodes and shows it as it happens, all panels step by step together; returns what was recorded.

    Args:
      recorders: one a panel.
      console: where to show it; None: the terminal.
      delay: seconds to wait after each step.
    """
    pieces: dict[str, str] = {}

    def steps(recorder: Recorder) -> Iterable[Mapping[str, Any]]:
        for step in recorder:
            pieces.update({str(token): recorder.piece(token) for token in step.tokens})
            yield _plain(step)

    views = [_View(title(one.decode), one.decode.gen_length, one.planned_steps) for one in recorders]
    _show(views, [steps(one) for one in recorders], pieces, console or Console(), delay)
    return [one.trajectory for one in recorders]


def again(trajectories: Sequence[Mapping[str, Any]], *, console: Console | None = None, delay: float = 0.25) -> None:
    """Shows recorded generations; trajectories as in `viewer.Replay`, `delay` seconds a step."""
    views = [_View(one["title"], one["length"], len(one["steps"])) for one in trajectories]
    pieces = {token: text for one in trajectories for token, text in one["pieces"].items()}
    _show(views, [one["steps"] for one in trajectories], pieces, console or Console(), delay)


def _show(views: Sequence[_View], sources, pieces: Mapping[str, str], console: Console, delay: float) -> None:
    """Takes a step of every source in turn until all have ended."""
    width = max(min(console.width // len(views), 100), 40)
    waiting = [iter(source) for source in sources]

    def picture() -> Columns:
        return Columns([view.draw(width) for view in views], padding=0)

    with Live(picture(), console=console, auto_refresh=False, vertical_overflow="visible") as screen:
        while any(waiting):
            for place, source in enumerate(waiting):
                if source is None:
                    continue
                step = next(source, None)
                if step is None:
                    waiting[place] = None
                else:
                    views[place].take(step, pieces)
            screen.update(picture(), refresh=True)
            time.sleep(delay)
    if not console.is_terminal:
        console.line()


def _plain(step: Step) -> dict[str, Any]:
    windows = [{"start": window.start, "end": window.end, "used": window.used} for window in step.windows]
    return {"positions": step.positions, "tokens": step.tokens, "windows": windows}
