"""A hub id or a local path → local files, with errors that say what to do; nothing that can run code is fetched."""

import pathlib
import re
from collections.abc import Sequence

import huggingface_hub
from huggingface_hub import errors

# Never needed, and some of them can run code when opened.
NOT_FETCHED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py", "*.h5", "*.msgpack", "*.onnx", "*.gguf")

_WEIGHTS = ("*.safetensors", "*.jpc", "codd.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(
    source: str | pathlib.Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | pathlib.Path | None = None,
    local_files_only: bool = False,
    allow_patterns: Sequence[str] | None = None,
) -> pathlib.Path:
    """The local folder (or file) of `source`: an existing path as it is, a hub id "owner/name" through the hub's cache.

    `allow_patterns` restricts what is fetched (default: everything but formats that are not read). Raises
    FileNotFoundError (no such path, repository, revision or weights; not in the cache), PermissionError (gated),
    ConnectionError (no answer from the hub) or ValueError (not a valid id), each with the way out.
    """
    name = str(source)
    try:
        path = pathlib.Path(source).expanduser()
    except RuntimeError as error:  # ~user, of whom nobody knows the home
        raise FileNotFoundError(f"{name} is neither an existing path nor a hub id ({error})") from error
    if path.exists():
        return path
    if isinstance(source, pathlib.Path) or not _HUB_ID.fullmatch(name) or path.suffix in (".jpc", ".safetensors"):
        raise FileNotFoundError(f"{name} is neither an existing path nor a hub id of the form owner/name")
    arguments = {"revision": revision, "token": token}
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=None if allow_patterns is None else list(allow_patterns),
            ignore_patterns=list(NOT_FETCHED) if allow_patterns is None else None,
            **arguments,
        )
    except Exception as error:
        explained = explain(error, name, revision, local_files_only)
        if explained is None:
            raise
        raise explained from error
    folder = pathlib.Path(folder)
    if allow_patterns is None and not any(next(folder.rglob(pattern), None) for pattern in _WEIGHTS):
        raise FileNotFoundError(_no_weights(name, local_files_only, **arguments))
    return folder


def explain(
    error: Exception, name: str, revision: str | None = None, local_files_only: bool = False
) -> Exception | None:
    """The hub's exception in the user's terms, or None for one that is none of the known kinds."""
    page = f"https://huggingface.co/{name}"
    at = f" at revision {revision!r}" if revision else ""
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{name} is gated: accept its terms on {page}, then pass token= or run `hf auth login` with that account"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{name} has no revision {revision!r}; see {page}/tree/main for its branches and tags")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{name} is not on the hub, or is private and the token cannot see it; "
            "check the spelling, or pass token= (for a local folder, check the path)"
        )
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{name!r} is not a valid hub id ({error})")
    if local_files_only and isinstance(error, errors.LocalEntryNotFoundError):
        return FileNotFoundError(
            f"{name}{at} is not complete in the local cache; run once with local_files_only=False while online"
        )
    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if isinstance(error, offline) or type(error).__name__ in ("ConnectError", "ProxyError", "ConnectTimeout"):
        return ConnectionError(
            f"{name}{at} is not in the local cache and the hub cannot be reached ({_first_line(error)}); "
            "go online (unset HF_HUB_OFFLINE), or give the path of a local folder"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", "?")
        if status in (401, 403):
            return PermissionError(
                f"the hub refuses {name} (status {status}): pass token= with write access, or run `hf auth login`"
            )
        return ConnectionError(
            f"the hub answered with status {status} for {name}{at} ({_first_line(error)}); try later"
        )
    return None


def _no_weights(name: str, local_files_only: bool, **arguments) -> str:
    """Say what a repository without readable weights holds instead."""
    pickled: list[str] = []
    if not local_files_only:
        try:
            files = huggingface_hub.list_repo_files(name, **arguments)
        except Exception:  # the message is worth having without this detail
            files = []
        pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
    if pickled:
        return (
            f"{name} holds weights only as PyTorch pickles ({', '.join(sorted(pickled)[:4])}), which can run code and "
            "are not read; take a revision with safetensors, or save it again with safe_serialization=True"
        )
    return f"{name} holds no safetensors, .jpc or converted checkpoint; see https://huggingface.co/{name}/tree/main"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
