"""The viewer's files, its page in a real browser, and the terminal's view."""

import io
import json

import pytest
from rich.console import Console

from codd_jax.evaluation import viewer_terminal
from codd_jax.evaluation.trajectory import Step, Trajectory, Window
from codd_jax.evaluation.viewer import answer_ids, make_replay, read_replay, to_html, write_replay
from tests.oracles.browser import browser

PIECES = {1: "Six", 2: " and\n", 3: "<script>document.title='broken'</script>", 4: " seven", 9: "<|end|>"}
EVIL = "</script><b id=evil>bold</b><img src=x onerror=\"document.title='broken'\">\u2028"


def trajectory(title="CoDD", coupled=True) -> Trajectory:
    """Six positions in three steps; the fourth and later ones come after the answer."""
    windows = (Window(0, 4, coupled), Window(4, 6, False)) if coupled else ()
    steps = (
        Step((0, 6), (0, 5), (1, 9), (0.9, 0.1), windows),
        Step((0, 6), (), (), (), windows),
        Step((0, 6), (1, 2, 3, 4), (2, 3, 9, 4), (0.5, 0.25, 1.0, 0.0), windows),
    )
    return Trajectory(title, {"steps": 3}, 0, 6, steps, (1, 2, 3), "text", PIECES)


def replay():
    """The backbone alone beside CoDD."""
    alone, coupled = trajectory("Backbone <alone>", coupled=False), trajectory()
    return make_replay(EVIL, f"about {EVIL}", [alone, coupled], ["", "the same tokens as in the results file"])


def test_replays_survive_storage(tmp_path):
    page = write_replay(replay(), tmp_path / "new")
    assert page.name == "replay.html"
    again = read_replay(tmp_path / "new" / "replay.json")
    assert again == replay() and page.read_text() == to_html(again)
    assert answer_ids(again.trajectories[0]) == [1, 2, 3]
    with pytest.raises(ValueError, match="do not add up"):
        answer_ids({**again.trajectories[0], "answer": [1, 3]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: {"a": 1}, "is no replay"),
        (lambda content: {**content, "format": "other"}, "another format"),
        (lambda content: {**content, "trajectories": []}, "holds no trajectory"),
        (lambda content: {**content, "trajectories": [{"title": "a"}]}, "is no replay"),
    ],
)
def test_what_is_no_replay_is_refused(tmp_path, change, message):
    write_replay(replay(), tmp_path)
    content = json.loads((tmp_path / "replay.json").read_text())
    (tmp_path / "replay.json").write_text(json.dumps(change(content)))
    with pytest.raises(ValueError, match=message):
        read_replay(tmp_path / "replay.json")
    content["trajectories"][0]["steps"][0]["tokens"] = [1]
    (tmp_path / "replay.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="differ in length"):
        read_replay(tmp_path / "replay.json")
    with pytest.raises(FileNotFoundError, match="beside a replay's page"):
        read_replay(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="no trajectory"):
        make_replay("", "", [])


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Page file and fragment → what headless Chromium made of it; skips where there is none."""
    return browser(tmp_path_factory.mktemp("profile"))


def test_the_page_replays_in_a_browser(tmp_path, browse):
    page = write_replay(replay(), tmp_path)
    start = browse(page)
    assert (start.body["data-step"], start.body["data-total"]) == ("0", "3")
    assert start.panels == [[" "] * 6] * 2 and all("mask" in kind for kind in start.classes[0])
    one = browse(page, "step=1")
    assert one.panels[1] == ["Six", " ", " ", " ", " ", "·"]
    assert one.classes[1][0] >= {"new", "block", "used"} and one.classes[1][4] >= {"mask", "idle"}
    assert not one.classes[0][0] & {"used", "idle"}
    # Play takes it to the end by itself, and what was generated or asked is text, nowhere markup.
    end = browse(page, "play&colour=confidence")
    assert end.body["data-step"] == "3"
    assert end.panels[0] == end.panels[1] == ["Six", " and\n", PIECES[3], "·", " seven", "·"]
    assert end.classes[0][4] >= {"after", "new"} and "after" not in end.classes[0][2]
    assert "img" not in end.tags and "evil" not in end.by_id and end.tags.count("script") == 2
    assert end.by_id["prompt"] == EVIL and end.by_id["title"] == "Denoising, step by step"


def test_the_terminal_shows_the_same(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system="truecolor")
    viewer_terminal.again(replay().trajectories, console=console, delay=0)
    shown = console.file.getvalue()
    assert "Backbone <alone>" in shown and "the circuit draws" in shown and "6 of 6 tokens" in shown
    assert "<script>document.title='broken'" in shown
