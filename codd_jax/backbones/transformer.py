"""The bidirectional transformer that LLaDA and Dream share: tokens in, logits of the chosen positions out."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from codd_jax.backbones.attention import attend, choose_implementation, heads
from codd_jax.backbones.config import BackboneConfig
from codd_jax.backbones.layers import Embedding, Linear, RMSNorm, project, rotary_table, rotate

LAYOUTS = ("stacked", "unrolled", "auto")

# On CPU a scan copies every layer's weights; past this many layers unrolling costs more to compile than it saves.
_UNROLL_LAYERS = 48


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU feed-forward, each added to the residual stream."""

    def __init__(
        self,
        config: BackboneConfig,
        *,
        dtype: jnp.dtype,
        param_dtype: jnp.dtype,
        attention_implementation: str,
        mesh: Mesh | None = None,
        rngs: nnx.Rngs,
    ):
        query_width, key_width = (count * config.head_dim for count in (config.num_heads, config.num_kv_heads))
        width, ffn = config.width, config.ffn_width
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        norm = {"eps": config.norm_eps, "use_bias": config.norm_bias, **dtypes}
        into = {"use_bias": config.qkv_bias, "rngs": rngs, **dtypes}
        ffn_in = {"use_bias": config.out_bias, "rngs": rngs, **dtypes}
        depth = (2 * config.num_layers) ** -0.5  # keeps the residual stream's variance independent of depth
        self.attn_norm = RMSNorm(width, **norm)
        self.q = Linear(width, query_width, **into)
        self.k = Linear(width, key_width, **into)
        self.v = Linear(width, key_width, **into)
        self.q_norm = RMSNorm(query_width, **norm) if config.qk_norm else None
        self.k_norm = RMSNorm(key_width, **norm) if config.qk_norm else None
        self.o = Linear(query_width, width, std=depth * query_width**-0.5, **ffn_in)
        self.ff_norm = RMSNorm(width, **norm)
        self.gate = Linear(width, ffn, **ffn_in)
        self.up = Linear(width, ffn, **ffn_in)
        self.down = Linear(ffn, width, std=depth * ffn**-0.5, **ffn_in)
        self.config = config
        self.attention_implementation, self.mesh = attention_implementation, mesh

    def __call__(self, x: jax.Array, table: tuple[jax.Array, jax.Array], lengths: jax.Array | None) -> jax.Array:
        """[B, L, D] → [B, L, D]; `table` is the rotary table, `lengths` [B] the real length of each row."""
        query, key, value = self.project(x, table)
        return self.mix(x, query, key, value, lengths)

    def project(self, x: jax.Array, table: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, L, N, H], keys and values [B, L, K, H] of x [B, L, D], the first two turned by the table."""
        config = self.config
        y = self.attn_norm(x)
        query, key, value = self.q(y), self.k(y), self.v(y)
        if config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotate(heads(query, config.num_heads), table)
        key = rotate(heads(key, config.num_kv_heads), table)
        return query, key, heads(value, config.num_kv_heads)

    def mix(
        self, x: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array | None
    ) -> jax.Array:
        """x [B, L, D] plus attention over key and value [B, S, K, H], plus the feed-forward part."""
        mixed = attend(query, key, value, lengths, self.attention_implementation, self.mesh)
        x = x + self.o(mixed.reshape(*mixed.shape[:2], -1))
        y = self.ff_norm(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


class Transformer(nnx.Module):
    """Embedding, blocks, final norm and head.

    Parameters: `embed.weight` [V, D]; `blocks.*` with a leading layer axis (layout "stacked", one `lax.scan`) or as an
    `nnx.List` of blocks (layout "unrolled", a Python loop, faster on CPU); `final_norm`; `head` unless tied. `dtype`
    is what is computed in, `param_dtype` (default: the same) what is stored. Logits are always float32. With `remat`
    a gradient keeps only what goes in and out of each block and computes the rest again, for memory. `mesh` holds the
    devices that the weights are spread over; attention kernels that XLA cannot split need to know it.
    """

    def __init__(
        self,
        config: BackboneConfig,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = None,
        layout: str = "stacked",
        attention_implementation: str = "auto",
        remat: bool = False,
        mesh: Mesh | None = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.remat = remat
        self.dtype = jnp.dtype(dtype)
        self.layout = choose_layout(config, layout)
        self.attention_implementation, self.mesh = attention_implementation, mesh
        dtypes = {"dtype": self.dtype, "param_dtype": jnp.dtype(param_dtype or dtype)}
        implementation = choose_implementation(attention_implementation, self.dtype, config.head_dim)

        def block(rngs: nnx.Rngs) -> Block:
            return Block(config, attention_implementation=implementation, mesh=mesh, rngs=rngs, **dtypes)

        self.embed = Embedding(config.vocab_size, config.width, rngs=rngs, **dtypes)
        if self.layout == "stacked":
            self.blocks = nnx.split_rngs(splits=config.num_layers)(nnx.vmap(block, in_axes=(0,), out_axes=0))(rngs)
        else:
            self.blocks = nnx.List([block(rngs) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.width, eps=config.norm_eps, use_bias=config.norm_bias, **dtypes)
        head = {"use_bias": config.head_bias, "rngs": rngs, **dtypes}
        self.head = None if config.tie_embeddings else Linear(config.width, config.vocab_size, **head)

    def __call__(
        self,
        tokens: jax.Array,
        lengths: jax.Array | None = None,
        positions: jax.Array | None = None,
        return_hidden: bool = False,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Logits float32 [B, L, V], or [B, P, V] at `positions` [B, P], each aligned to the token it predicts.

        tokens [B, L] int32, right-padded; lengths [B] int32 counts each row's real tokens (None: all). With
        `return_hidden` the result is (logits, final-normed hidden states [B, L, D], not shifted).
        """
        hidden = self.encode(tokens, lengths)
        logits = self.logits(hidden, positions)
        return (logits, hidden) if return_hidden else logits

    def encode(self, tokens: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Hidden states after the final norm, [B, L, D]; arguments as in `__call__`."""
        return self.final_norm(self._blocks(tokens, lengths, keep=False)[0])

    def hidden_states(self, tokens: jax.Array, lengths: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The embeddings [B, L, D] and the output of every block, [N, B, L, D], before the final norm."""
        return self.embedded(tokens), self._blocks(tokens, lengths, keep=True)[1]

    def logits(self, hidden: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """Logits float32 of the tokens at `positions` [B, P] (None: all) from hidden states [B, L, D].

        The one place that knows about alignment: where the family predicts the next position, the logits of position
        i are computed from the hidden state at max(i - 1, 0).
        """
        shift = self.config.shift_logits
        if positions is not None:
            source = jnp.maximum(positions - 1, 0) if shift else positions
            hidden = jnp.take_along_axis(hidden, source[..., None], axis=1, mode="clip")
        elif shift:
            hidden = jnp.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1)
        weight = self.embed.weight if self.head is None else self.head.weight
        logits = project(hidden, weight[...].astype(self.dtype), jnp.float32)
        if self.head is not None and self.head.bias is not None:
            logits = logits + self.head.bias[...].astype(jnp.float32)
        return logits * self.config.width**-0.5 if self.config.scale_logits else logits

    def embedded(self, tokens: jax.Array) -> jax.Array:
        """What the first block reads, [..., D], of tokens [...]."""
        x = self.embed(tokens)
        return x * jnp.asarray(self.config.width**0.5, x.dtype) if self.config.input_emb_norm else x

    def rotary(self, length: int) -> tuple[jax.Array, jax.Array]:
        """The rotary table of positions 0..length-1, in the precision that the family turns in."""
        table = rotary_table(length, self.config.head_dim, self.config.rope_theta)
        return table if self.config.rope_float32 else tuple(part.astype(self.dtype) for part in table)

    def fold_blocks(self, step: Callable[..., tuple[Any, Any]], x: Any, per_layer: Any = None) -> tuple[Any, Any]:
        """Fold x, outputs[n] = step(x, blocks[n], per_layer[n]) over the blocks, the way the layout runs them.

        Outputs and `per_layer` are trees of arrays with a leading layer axis in layout "stacked", and a tuple with one
        tree for each block in layout "unrolled".
        """
        if self.remat:
            # A scan's body is compiled by itself: nothing could merge the second computation with the first.
            step = jax.checkpoint(step, prevent_cse=self.layout != "stacked")
        if self.layout == "stacked":
            return jax.lax.scan(lambda x, layer: step(x, *layer), x, (self.blocks, per_layer))
        outputs = []
        for number, block in enumerate(self.blocks):
            x, output = step(x, block, None if per_layer is None else per_layer[number])
            outputs.append(output)
        return x, tuple(outputs)

    def _blocks(self, tokens: jax.Array, lengths: jax.Array | None, keep: bool) -> tuple[jax.Array, jax.Array | None]:
        """Run the blocks; with `keep` also return each one's output, stacked."""
        check_shapes(tokens, lengths)
        table = self.rotary(tokens.shape[1])

        def step(x: jax.Array, block: Block, _: None) -> tuple[jax.Array, jax.Array | None]:
            x = block(x, table, lengths)
            return x, x if keep else None

        x, outputs = self.fold_blocks(step, self.embedded(tokens))
        return x, jnp.stack(outputs) if keep and self.layout == "unrolled" else outputs

    def with_layout(self, layout: str) -> Self:
        """The same weights in another layout; arrays of the blocks are copied, the others are shared."""
        layout = choose_layout(self.config, layout)
        if layout == self.layout:
            return self
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        convert = unstack_blocks if layout == "unrolled" else stack_blocks
        return type(self).from_params(self.config, convert(params), self.dtype, layout=layout, **self.options)

    def with_options(self, **changes: Any) -> Self:
        """The same weights, and LoRA factors if there are any, computed in another way: changes of `options`."""
        options = {**self.options, **changes}
        kernel = choose_implementation(options["attention_implementation"], self.dtype, self.config.head_dim)
        other = nnx.merge(*nnx.split(self))
        for name, value in options.items():
            setattr(other, name, value)
        for block in [other.blocks] if self.layout == "stacked" else other.blocks:
            block.attention_implementation, block.mesh = kernel, options["mesh"]
        return other

    @property
    def options(self) -> dict[str, Any]:
        """What the constructor took that says how to compute, to build another around the same weights."""
        return {
            "attention_implementation": self.attention_implementation, "remat": self.remat, "mesh": self.mesh,
        }  # fmt: skip

    @classmethod
    def abstract(cls, config: BackboneConfig, dtype: Any = jnp.float32, **options: Any) -> Self:
        """A Transformer whose parameters are shapes and dtypes only, without memory; options as in the constructor."""
        return nnx.eval_shape(lambda: cls(config, dtype=dtype, rngs=nnx.Rngs(0), **options))

    @classmethod
    def from_params(cls, config: BackboneConfig, params: Mapping[str, Any], dtype: Any = None, **options: Any) -> Self:
        """Build around existing arrays (a nested dict as of `nnx.to_pure_dict`), without copying them.

        `dtype` is what is computed in (default: the embedding's). Raises ValueError listing the parameters that are
        missing, unknown or of another shape.
        """
        dtype = params["embed"]["weight"].dtype if dtype is None else dtype
        graphdef, state = nnx.split(cls.abstract(config, dtype, **options))
        expected = dict(nnx.to_flat_state(state))
        given = flatten(params)
        wrong = [f"{_dotted(path)} is missing" for path in expected if path not in given]
        wrong += [f"{_dotted(path)} is unknown" for path in given if path not in expected]
        wrong += [
            f"{_dotted(path)} has shape {tuple(array.shape)}, the config asks for {tuple(expected[path].shape)}"
            for path, array in given.items()
            if path in expected and tuple(array.shape) != tuple(expected[path].shape)
        ]
        if wrong:
            raise ValueError(f"the parameters do not fit the config: {'; '.join(wrong)}")
        nnx.replace_by_pure_dict(state, dict(params))
        return nnx.merge(graphdef, state)


def check_shapes(tokens: jax.Array, lengths: jax.Array | None) -> None:
    """Raise ValueError unless tokens are [batch, length] and lengths [batch] or None."""
    if tokens.ndim != 2 or (lengths is not None and lengths.shape != tokens.shape[:1]):
        got = None if lengths is None else lengths.shape
        raise ValueError(f"tokens must be [batch, length] and lengths [batch]; got {tokens.shape} and {got}")


def choose_layout(config: BackboneConfig, layout: str) -> str:
    """Resolve "auto": unrolled on CPU up to 48 layers, stacked elsewhere and beyond."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown; known: {', '.join(LAYOUTS)}")
    if layout == "auto":
        return "unrolled" if jax.default_backend() == "cpu" and config.num_layers <= _UNROLL_LAYERS else "stacked"
    return layout


def flatten(params: Mapping[Any, Any], prefix: tuple = ()) -> dict[tuple, Any]:
    """A nested dict of arrays as one dict from path tuples to arrays."""
    flat: dict[tuple, Any] = {}
    for key, value in params.items():
        flat |= flatten(value, (*prefix, key)) if isinstance(value, Mapping) else {(*prefix, key): value}
    return flat


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parameters in layout "stacked" → layout "unrolled": `blocks` becomes {layer number: block}."""
    count = jax.tree.leaves(params["blocks"])[0].shape[0]
    blocks = {layer: jax.tree.map(lambda array, layer=layer: array[layer], params["blocks"]) for layer in range(count)}
    return {**params, "blocks": blocks}


def stack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parameters in layout "unrolled" → layout "stacked": `blocks` gets a leading layer axis."""
    blocks = [params["blocks"][layer] for layer in sorted(params["blocks"])]
    return {**params, "blocks": jax.tree.map(lambda *arrays: jnp.stack(arrays), *blocks)}


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))
