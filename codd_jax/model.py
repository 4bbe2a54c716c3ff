"""CoDD: a backbone, a circuit and a tokenizer as one model that loads, generates, fills in, scores and saves."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
from flax import nnx

from codd_jax import loading, saving
from codd_jax.backbones import BackboneConfig, Transformer, check_length
from codd_jax.circuits import HMM
from codd_jax.decoding.canvas import Canvas, row_keys
from codd_jax.decoding.config import DecodeConfig
from codd_jax.decoding.denoiser import BackboneDenoiser
from codd_jax.decoding.loop import decode
from codd_jax.decoding.strategy import Numbers, Strategy
from codd_jax.generation import Generation, Job, filling_config
from codd_jax.io import checkpoint, hub
from codd_jax.io import circuit as circuit_io
from codd_jax.likelihood import LogLikelihood, log_likelihood
from codd_jax.prompts import Prompt, check_seed, check_seeds, encode_holes, encode_prompts, require_tokenizer
from codd_jax.sharding import make_mesh
from codd_jax.sources import cited, trace
from codd_jax.tokenizer import encode_text, stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CoDD:
    """A diffusion language model whose denoising steps sample their tokens jointly (arXiv 2603.00045).

    Attributes:
      backbone: the transformer. config: its configuration.
      hmm: the circuit, or None for the backbone alone.
      tokenizer: of the checkpoint, or None.
      mesh: the devices that rows and weights are spread over, or None.
      defaults: the decoding configuration used where none is given.
      sources: where the parts came from, {"hub": id} or {"folder": name} by part.
      stop_ids: EOS and the end of a chat turn.
    """

    def __init__(
        self,
        backbone: Transformer,
        hmm: HMM | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        mesh: jax.sharding.Mesh | None = None,
        defaults: DecodeConfig | None = None,
        sources: dict[str, Any] | None = None,
    ):
        """Joins parts that are in memory; `from_pretrained` loads them.

        Raises:
          ValueError: the circuit is over another vocabulary than the backbone.
        """
        if hmm is not None:
            circuit_io.CircuitInfo.of(hmm).check_fit(backbone.config)
        if mesh is not None and backbone.mesh != mesh:
            backbone = backbone.with_options(mesh=mesh)
        self.backbone = backbone
        self.config: BackboneConfig = backbone.config
        self.hmm = hmm
        self.tokenizer = tokenizer
        self.mesh = mesh
        self.defaults = defaults or loading.default_config(None if hmm is None else hmm.length)
        self.sources = {part: cited(source) for part, source in (sources or {}).items()}
        self.stop_ids = stop_ids(tokenizer, self.config.eos_id)
        graphdef, self.params = nnx.split(backbone)
        self.denoiser = BackboneDenoiser(graphdef)

    @classmethod
    def from_pretrained(
        cls,
        source: str | pathlib.Path,
        circuit: str | pathlib.Path | Literal[False] | None = None,
        *,
        dtype: str | Any = "bfloat16",
        circuit_dtype: str | Any = "float32",
        mesh: str | dict[str, int] | jax.sharding.Mesh | None = None,
        adapter: str | pathlib.Path | None = None,
        defaults: DecodeConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | pathlib.Path | None = None,
        local_files_only: bool = False,
        progress: bool = True,
    ) -> CoDD:
        """Loads a model.

        Args:
          source: a hub id, a folder in HuggingFace layout, a converted folder, or one that holds backbone and circuit.
          circuit: a hub id, a .jpc file, a folder with model.jpc or a converted folder; None: the source's own, if any;
            False: the backbone alone, even if the source holds a circuit.
          dtype: the backbone's weights and activations. circuit_dtype: the emissions of the circuit.
          mesh: "data:2,model:4" spreads rows and weights over devices.
          adapter: a PEFT LoRA folder or hub id, merged into the backbone.
          defaults: how to decode where nothing is said; None: as stored with the source, else `DecodeConfig()` with
            blocks no longer than the circuit's window.
          revision: of the source. token, cache_dir, local_files_only: of whatever comes from the hub.
          progress: show a bar while weights are read.

        Raises:
          FileNotFoundError, PermissionError, ConnectionError: something is not there or cannot be had.
          ValueError: files that cannot be read, a dtype that is not floating, a circuit over another vocabulary or
            mask id than the backbone, or stored defaults that do not fit; found before any weight is read.
        """
        dtype, circuit_dtype = loading.floating("dtype", dtype), loading.floating("circuit_dtype", circuit_dtype)
        access = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        folder = hub.resolve(source, revision=revision, **access)
        stored = loading.stored_defaults(folder) if defaults is None else None
        opened = checkpoint.open_backbone(folder, adapter=adapter, **access)
        circuit_at = checkpoint.parts(folder)[1] if circuit is None else circuit or None
        about = None if circuit_at is None else circuit_io.describe(circuit_at, **access)
        if about is not None:
            about.check_fit(opened.config)
        if stored is not None:
            loading.check_defaults(stored, opened.config, about, folder)
        tokenizer = loading.optional_tokenizer(opened.tokenizer_folder)
        origins = trace(source, folder, circuit, adapter)
        mesh = make_mesh(mesh) if isinstance(mesh, str | dict) else mesh
        backbone = opened.load(dtype=dtype, mesh=mesh, layout="auto", progress=progress)
        hmm = None
        if circuit_at is not None:
            hmm = loading.load_circuit(circuit_at, dtype=circuit_dtype, mesh=mesh, **access)
        return cls(backbone, hmm, tokenizer, mesh=mesh, defaults=defaults or stored, sources=origins)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        config: DecodeConfig | None = None,
        *,
        seed: int | Sequence[int] = 0,
        batch_size: int = 8,
        system: str | None = None,
        stop_strings: Sequence[str] = (),
        progress: bool = False,
        pad_batch: bool = False,
        refill: bool = True,
        on_finished: Callable[[Mapping[int, Generation]], None] | None = None,
    ) -> Generation:
        """Answers prompts.

        Args:
          prompts: one or many; a string is a user's message in the model's chat template, a list of
            `{"role", "content"}` a conversation, a list of integers token ids.
          config: how to decode; None: `defaults`. With `num_samples` n, every prompt gets n answers, side by side.
          seed: equal seeds give equal answers, whatever the batch size and the order of the prompts; one, or one for
            each prompt.
          batch_size: rows decoded together.
          system: a system message before strings and conversations.
          stop_strings: text ends before the first of these.
          progress: show a bar.
          pad_batch: fill fewer prompts up to `batch_size` rows, so that calls of any number of prompts share programs.
          refill: an answer that is finished gives its row to the next prompt; False lets it wait for its whole batch.
          on_finished: called with answers as they finish, {index of prompt and sample: its `Generation`}.

        Returns:
          A `Generation` with one entry per prompt and sample.

        Raises:
          ValueError: bad prompts, or a configuration that does not fit backbone or circuit.
          FloatingPointError: NaN or infinite logits.
        """
        job = self._job(prompts, config, seed, system, stop_strings)
        return job.run(batch_size, progress, pad_batch, refill, on_finished)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        config: DecodeConfig | None = None,
        *,
        seed: int = 0,
        system: str | None = None,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[Generation]:
        """As `generate`, all prompts in one batch, but yields what there is after every block."""
        return self._job(prompts, config, seed, system, stop_strings).stream()

    def _job(self, prompts, config, seed: int | Sequence[int], system, stop_strings) -> Job:
        config = config or self.defaults
        rows = encode_prompts(prompts, self.tokenizer, vocab_size=self.config.vocab_size, system=system)
        rows = [row for row in rows for _ in range(config.num_samples)]
        self._check(config, rows, config.gen_length)
        stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if stops:
            require_tokenizer(self.tokenizer, "stop_strings")
        keys = row_keys(rows, check_seeds(seed, config.num_samples))
        return Job(self, config, rows, keys, config.gen_length, stop_strings=stops)

    def infill(
        self,
        texts: str | Sequence[int] | Sequence[str | Sequence[int]],
        config: DecodeConfig | None = None,
        *,
        seed: int = 0,
        batch_size: int = 8,
        progress: bool = False,
    ) -> Generation:
        """Fills the holes of texts: `<mask>` is one token, `<mask:8>` a span of eight; in lists of ids, the mask id.

        The whole text is one canvas: `gen_length`, `block_length` and `cache` have no say, the circuit's windows are
        laid over the holes, nothing ends at EOS, and `steps` are shared by all holes (at most one a hole).

        Returns:
          A `Generation` whose rows are the whole texts.

        Raises:
          ValueError: a text without a hole.
        """
        rows = encode_holes(texts, self.tokenizer, vocab_size=self.config.vocab_size, mask_id=self.config.mask_id)
        config = config or self.defaults
        rows = [row for row in rows for _ in range(config.num_samples)]
        config = filling_config(config, rows, self.config.mask_id, coupled=self.hmm is not None)
        self._check(config, rows, 0)
        job = Job(self, config, rows, row_keys(rows, check_seed(seed)), 0, prompt_lengths=[0] * len(rows))
        return job.run(batch_size, progress)

    def log_likelihood(
        self,
        prompt: Prompt,
        completion: str | Sequence[int],
        *,
        num_samples: int = 32,
        batch_size: int = 8,
        seed: int = 0,
    ) -> LogLikelihood:
        """Log-likelihood of a completion in nats: the diffusion bound and one step, factorised and coupled.

        Args:
          prompt: as in `generate`. completion: text as it stands, or token ids.
          num_samples: maskings drawn for the bound; batch_size: of them at once; seed: of them.

        Raises:
          ValueError: an empty prompt or completion, or ids outside the vocabulary.
        """
        (ids,) = encode_prompts([prompt], self.tokenizer, vocab_size=self.config.vocab_size)
        if isinstance(completion, str):
            completion = encode_text(require_tokenizer(self.tokenizer, "the completion"), completion)
        return log_likelihood(
            self.denoiser,
            self.params,
            self.config,
            self.hmm,
            ids,
            completion,
            num_samples=num_samples,
            batch_size=batch_size,
            seed=check_seed(seed),
        )

    def decode(self, canvas: Canvas, config: DecodeConfig | None = None, **options: Any) -> Canvas:
        """Runs the decoding loops over a canvas of your own; options as in `decoding.loop.decode`."""
        strategy, numbers = self.split(config or self.defaults)
        return decode(self.denoiser, self.params, canvas, strategy, numbers, hmm=self.hmm, mesh=self.mesh, **options)

    def split(self, config: DecodeConfig) -> tuple[Strategy, Numbers]:
        """What the decoder is compiled for and what it is fed, for this model."""
        return config.split(
            family=self.config.family,
            mask_id=self.config.mask_id,
            stop_ids=self.stop_ids,
            circuit_length=None if self.hmm is None else self.hmm.length,
        )

    def save_pretrained(self, folder: str | pathlib.Path, *, overwrite: bool = False) -> None:
        """Writes backbone, circuit, tokenizer and defaults into a folder that `from_pretrained` loads.

        Raises:
          ValueError: `defaults` do not fit the circuit.
          FileExistsError: the folder exists; `overwrite` replaces one that was written so. OSError: the disk is full.
        """
        saving.save(self, folder, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload a codd_jax model",
    ) -> str:
        """Saves the model to the hub with a model card, as one commit; returns the commit's address.

        Raises:
          ValueError: not an id of the form owner/name. PermissionError, ConnectionError: the hub refuses or is away.
        """
        return saving.push(self, repo_id, private=private, token=token, commit_message=commit_message)

    def _check(self, config: DecodeConfig, rows: Sequence[Sequence[int]], added: int) -> None:
        """Raises what is wrong with decoding `rows` with `added` masks each, before anything runs."""
        check_length(self.config, max(map(len, rows)) + added)
        loading.check_decoding(config, self.config, None if self.hmm is None else circuit_io.CircuitInfo.of(self.hmm))
