"""Hub ids and local paths, against a hub that exists only here: every failure says what to do."""

import huggingface_hub
import pytest
from huggingface_hub import errors

from codd_jax.io.hub import resolve


class Response:
    """As much of an HTTP response as the hub's exceptions look at."""

    def __init__(self, status_code):
        self.status_code, self.headers, self.text, self.request = status_code, {}, "", None


def _http(kind, status):
    return kind("said the hub", response=Response(status))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository; set `hub.error` to make it fail, `hub.files` to change what it holds."""

    class Hub:
        error, files, calls = None, ["config.json", "model.safetensors"], []

    def download(name, **options):
        Hub.calls.append((name, options))
        if Hub.error:
            raise Hub.error
        folder = tmp_path / "cache" / name
        folder.mkdir(parents=True, exist_ok=True)
        ignored = tuple(pattern.removeprefix("*") for pattern in options["ignore_patterns"] or ())
        for file in Hub.files:
            if not file.endswith(ignored):
                (folder / file).touch()
        return str(folder)

    Hub.calls = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, **_: Hub.files)
    return Hub


def test_existing_paths_are_taken_as_they_are(tmp_path, hub):
    file = tmp_path / "model.jpc"
    file.touch()
    assert resolve(tmp_path) == tmp_path and resolve(str(file)) == file
    assert not hub.calls


def test_a_hub_id_is_downloaded_with_the_callers_options(hub, tmp_path):
    folder = resolve("GSAI-ML/LLaDA-8B-Base", revision="v1", token="t", cache_dir=tmp_path, allow_patterns=["*.json"])
    assert (folder / "config.json").exists()
    name, options = hub.calls[0]
    assert name == "GSAI-ML/LLaDA-8B-Base"
    assert (options["revision"], options["token"], options["cache_dir"]) == ("v1", "t", tmp_path)
    assert options["allow_patterns"] == ["*.json"] and options["local_files_only"] is False


def test_nothing_that_can_run_code_is_fetched(hub):
    hub.files = ["modeling_llada.py", "pytorch_model.bin", "model.safetensors"]
    assert [file.name for file in resolve("a/b").iterdir()] == ["model.safetensors"]


def test_the_home_of_nobody(hub):
    with pytest.raises(FileNotFoundError, match="~nouser-of-this-name/x is neither an existing path nor a hub id"):
        resolve("~nouser-of-this-name/x")


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "no-slash", "a/b/c", "runs/model.jpc", "~/nowhere"])
def test_what_is_neither_path_nor_id_does_not_reach_the_hub(hub, name):
    with pytest.raises(FileNotFoundError, match="neither an existing path nor a hub id"):
        resolve(name)
    assert not hub.calls


@pytest.mark.parametrize(
    ("error", "options", "kind", "said"),
    [
        (_http(errors.GatedRepoError, 403), {}, PermissionError, r"a/b is gated: accept its terms on .*token="),
        (_http(errors.RepositoryNotFoundError, 404), {}, FileNotFoundError, r"a/b is not on the hub, or is private"),
        (_http(errors.RevisionNotFoundError, 404), {"revision": "v9"}, FileNotFoundError, r"has no revision 'v9'"),
        (errors.HFValidationError("bad"), {}, ValueError, r"'a/b' is not a valid hub id"),
        (
            errors.LocalEntryNotFoundError("x"),
            {"local_files_only": True},
            FileNotFoundError,
            "not complete in the local",
        ),
        (errors.LocalEntryNotFoundError("no net"), {}, ConnectionError, r"cannot be reached \(no net\).*local folder"),
        (errors.OfflineModeIsEnabled("off"), {"revision": "r"}, ConnectionError, r"at revision 'r' .*HF_HUB_OFFLINE"),
        (TimeoutError(), {}, ConnectionError, r"cannot be reached \(TimeoutError\)"),
        (_http(errors.HfHubHTTPError, 401), {}, PermissionError, r"refuses a/b \(status 401\): pass token="),
        (_http(errors.HfHubHTTPError, 403), {}, PermissionError, r"status 403.*`hf auth login`"),
        (_http(errors.HfHubHTTPError, 503), {}, ConnectionError, r"answered with status 503 for a/b"),
    ],
)
def test_failures_say_what_to_do(hub, error, options, kind, said):
    hub.error = error
    with pytest.raises(kind, match=said):
        resolve("a/b", **options)


def test_unknown_errors_pass_through(hub):
    hub.error = RuntimeError("a fault of its own")
    with pytest.raises(RuntimeError, match="a fault of its own"):
        resolve("a/b")


def test_repositories_with_pickles_only_or_no_weights(hub):
    hub.files = ["config.json", "pytorch_model.bin"]
    with pytest.raises(FileNotFoundError, match=r"PyTorch pickles \(pytorch_model\.bin\).*safe_serialization"):
        resolve("a/b")
    hub.files = ["config.json"]
    with pytest.raises(FileNotFoundError, match="holds no safetensors"):
        resolve("a/c")
    assert resolve("a/c", allow_patterns=["*.json"]).name == "c"


def test_the_hub_library_itself_without_a_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="a/b is not complete in the local cache"):
        resolve("a/b", cache_dir=tmp_path, local_files_only=True)
