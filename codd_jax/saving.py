"""A whole model to disk and to the hub: complete or absent, whatever happens on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import huggingface_hub

from codd_jax.backbones.low_rank import merge_lora
from codd_jax.card import model_card
from codd_jax.io.circuit import CircuitInfo, save_circuit
from codd_jax.io.converted import save_backbone
from codd_jax.io.hub import explain
from codd_jax.io.workspace import building, write_marker
from codd_jax.loading import check_decoding, default_config
from codd_jax.sources import Source

if TYPE_CHECKING:
    from codd_jax.model import CoDD


def save(model: CoDD, folder: str | pathlib.Path, *, overwrite: bool = False) -> None:
    """Writes a model as a folder that `CoDD.from_pretrained` loads; see `CoDD.save_pretrained`."""
    # Loading refuses defaults that do not fit, so they are not written either.
    check_decoding(model.defaults, model.config, None if model.hmm is None else CircuitInfo.of(model.hmm))
    job = {"source": "a model in memory"}
    with building(folder, job, overwrite=overwrite) as partial, tempfile.TemporaryDirectory() as scratch:
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(scratch)
        save_backbone(partial / "backbone", merge_lora(model.backbone), tokenizer_folder=scratch, overwrite=True)
        if model.hmm is not None:
            save_circuit(partial / "circuit", model.hmm, {"mask_id": model.config.mask_id})
        write_marker(
            partial,
            "bundle",
            **_defaults(model),
            sources=model.sources,
            coupled=model.hmm is not None,
        )


def push(model: CoDD, repo_id: str, *, private: bool, token: str | None, commit_message: str) -> str:
    """Uploads a model with its card; see `CoDD.push_to_hub`."""
    card = model_card(
        repo_id,
        _facts(model),
        family=model.config.family,
        base_models=list(dict.fromkeys(source["hub"] for source in model.sources.values() if "hub" in source)),
        coupled=model.hmm is not None,
    )
    api = huggingface_hub.HfApi(token=token)
    with _explained(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)  # before gigabytes are written for a mistyped id
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "model"
        save(model, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        with _explained(repo_id):
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return str(getattr(commit, "commit_url", commit))


@contextlib.contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """The hub's exceptions in the user's terms."""
    try:
        yield
    except Exception as error:
        explained = explain(error, repo_id)
        if explained is None:
            raise
        raise explained from error


def _defaults(model: CoDD) -> dict[str, object]:
    """Decoding defaults to store: none where they are those of any model, so that another circuit may be joined."""
    usual = default_config(None if model.hmm is None else model.hmm.length)
    return {} if model.defaults == usual else {"decoding": dataclasses.asdict(model.defaults)}


def _facts(model: CoDD) -> dict[str, object]:
    """What the model card's table says."""
    config = model.config
    facts = {
        "backbone": f"{config.num_params / 1e6:,.1f} M weights, {config.num_layers} layers of width {config.width}",
        "vocabulary": f"{config.vocab_size:,}",
    }
    if model.hmm is not None:
        hmm = model.hmm
        facts["circuit"] = f"{hmm.num_states:,} states over {hmm.length} tokens, {hmm.normalization} normalisation"
        if hmm.modulation is not None:
            facts["circuit"] += f", follows the context ({', '.join(hmm.modulation.kinds)})"
    return facts | {f"{part} from": _shown(source) for part, source in model.sources.items()}


def _shown(source: Source) -> str:
    return f"`{source['hub']}`" if "hub" in source else f"a local folder, `{source['folder']}`"
