"""Circuit files: the goldens bit for bit, both ways, and nothing that a hostile file can do."""

import pickle
import types

import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.io import inert_pickle, jpc, jpc_chain

GOLDEN = (
    "hom_raw_T4_H4_V5",
    "hom_compiled_T4_H4_V5",
    "hom_given_T5_H4_V3_block2",
    "inhom_raw_T4_H3_V5",
    "inhom_compiled_T4_H4_V3_block2",
    "hom_compiled_T8_H32_V50_block8",
    "hom_compiled_T32_H32_V64_block32",
    "hom_sparse_edges_T4_H8_V5_block2",
    "hom_categorical_em_T4_H4_V6",
    "hom_softevidence_T4_H4_V6",
)
VARIANTS = ("variant_protocol5_T4_H4_V5", "variant_legacy_keys_T4_H4_V5", "variant_numpy1_names_T4_H4_V5")
# Files whose blocks are laid out as PyJuice lays them out when nobody asks for anything else.
DEFAULT_LAYOUT = (
    "hom_raw_T4_H4_V5",
    "hom_compiled_T4_H4_V5",
    "hom_compiled_T32_H32_V64_block32",
    "inhom_raw_T4_H3_V5",
)


def bits(array):
    return np.asarray(array).view(np.uint32)


def assert_same_bits(hmm, initial, transition, emission):
    for ours, expected in ((hmm.initial, initial), (hmm.transition, transition), (hmm.emission, emission)):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(bits(ours), bits(expected))


def random_hmm(length=3, states=6, vocab=5, tied=(True, True), normalization="global", seed=0):
    random = np.random.default_rng(seed)

    def rows(*shape):
        table = random.random(shape, np.float32)
        return table / table.sum(-1, keepdims=True)

    return types.SimpleNamespace(
        initial=rows(states),
        transition=rows(states, states) if tied[0] else rows(length - 1, states, states),
        emission=rows(states, vocab) if tied[1] else rows(length, states, vocab),
        length=length,
        normalization=normalization,
        modulation=None,
    )


def write_nodes(path, nodes):
    path.write_bytes(pickle.dumps(nodes, protocol=4))
    return path


@pytest.fixture
def nodes():
    """The node dicts of a small circuit, to be spoilt."""
    return jpc._node_dicts(random_hmm())


@pytest.mark.parametrize("name", GOLDEN + VARIANTS)
def test_parameters_are_read_bit_for_bit(fixtures_dir, name):
    expected = np.load(fixtures_dir / "jpc" / f"{'hom_compiled_T4_H4_V5' if name in VARIANTS else name}.npz")
    hmm = jpc.read(fixtures_dir / "jpc" / f"{name}.jpc")
    assert_same_bits(hmm, expected["pi"], expected["A"], expected["E"])
    assert hmm.length == expected["tokens"].shape[1]
    assert hmm.normalization == "global"


@pytest.mark.parametrize("name", GOLDEN)
def test_sizes_are_known_before_parameters_are_read(fixtures_dir, name):
    chain = jpc_chain.open_chain(fixtures_dir / "jpc" / f"{name}.jpc")
    expected = np.load(fixtures_dir / "jpc" / f"{name}.npz")
    assert (chain.length, chain.num_states, chain.vocab_size) == expected["log_phi"].shape[1:2] + expected["E"].shape[
        -2:
    ]


@pytest.mark.parametrize("name", GOLDEN)
def test_written_files_read_back_bit_for_bit(fixtures_dir, tmp_path, name):
    source = fixtures_dir / "jpc" / f"{name}.jpc"
    hmm = jpc.read(source)
    jpc.write(tmp_path / "again.jpc", hmm)
    assert_same_bits(jpc.read(tmp_path / "again.jpc"), hmm.initial, hmm.transition, hmm.emission)
    if name in DEFAULT_LAYOUT:
        assert (tmp_path / "again.jpc").read_bytes() == source.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.jpc"]


@pytest.mark.parametrize("length,states,vocab", [(1, 2, 3), (2, 6, 1), (5, 7, 300), (3, 12, 70000)])
def test_round_trip_of_tied_circuits(tmp_path, length, states, vocab):
    check_round_trip(tmp_path, length, states, vocab, (True, True))


@pytest.mark.parametrize("tied", [(True, False), (False, True), (False, False)])
def test_round_trip_of_circuits_that_vary_over_time(tmp_path, tied):
    check_round_trip(tmp_path, 5, 7, 300, tied)


def check_round_trip(tmp_path, length, states, vocab, tied):
    hmm = random_hmm(length, states, vocab, tied, normalization="local")
    jpc.write(tmp_path / "c.jpc", hmm)
    again = jpc.read(tmp_path / "c.jpc")
    assert (again.length, again.normalization) == (length, "local")
    transition = hmm.transition if length > 1 else np.full((states, states), 1 / states, np.float32)
    assert_same_bits(again, hmm.initial, transition, hmm.emission)


def test_write_refuses_other_suffixes(tmp_path):
    with pytest.raises(ValueError, match=r"\.jpc"):
        jpc.write(tmp_path / "circuit.bin", random_hmm())


@pytest.mark.parametrize(
    "name,reason",
    [
        ("reject_outer_global", r"builtins\.print"),
        ("reject_inner_global", r"node 0: dist: names builtins\.print"),
        ("reject_huge_array", "not an array as NumPy pickles one"),
        ("reject_truncated", "truncated"),
    ],
)
def test_hostile_files_are_refused_and_not_run(fixtures_dir, capfd, name, reason):
    path = fixtures_dir / "jpc" / f"{name}.jpc"
    with pytest.raises(ValueError, match=reason) as caught:
        jpc.read(path)
    assert str(path) in str(caught.value)
    assert capfd.readouterr().out == ""


def test_every_truncation_is_a_value_error(tmp_path, nodes):
    whole = pickle.dumps(nodes, protocol=4)
    path = tmp_path / "short.jpc"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"short\.jpc"):
            jpc.read(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="4 bytes follow"):
        jpc.read(path)


def test_damaged_files_never_fail_in_another_way(tmp_path, nodes):
    whole = pickle.dumps(nodes, protocol=4)
    random = np.random.default_rng(0)
    path, refused = tmp_path / "damaged.jpc", 0
    for _ in range(600):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            jpc_chain.open_chain(path)
        except ValueError as error:
            refused += 1
            assert "damaged.jpc" in str(error)
    assert refused > 200


@pytest.mark.parametrize(
    "data,reason",
    [
        (b"", "an empty file"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "does not begin as a pickle"),
        (pickle.dumps({"state": 1}, 4), "list of node dicts"),
        (pickle.dumps([], 4), "list of node dicts"),
        (pickle.dumps([np.float32(1)], 4), r"numpy.*scalar"),
        (b"\x80\x04" + b"}" * (inert_pickle.MAX_OPCODES + 1) + b".", "pickle opcodes"),
        (b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b".", "list of node dicts"),
        (b"\x80\x04" + b")" + b"\x94h\x00\x86" * 60 + b".", "list of node dicts"),
        (b"\x80\x04]r\xff\xff\xff\xffj\xff\xff\xff\xff.", "list of node dicts"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "truncated"),
        (b"\x80\x04X\xff\xff\x00\x00" + b"a" * 65535 + b".", "a string of 65535 bytes"),
        (b"\x80\x04\x8a\xff" + b"\x01" * 255 + b".", "an integer of 255 bytes"),
        (b"\x80\x04cos\nsystem\n(S'true'\ntR.", r"os\.system"),
        (b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93\x8c\x05numpy\x8c\x07ndarray\x93R.", "a call of something"),
        (b"\x80\x04P1\n.", "opcode"),
        (b"\x80\x04]]R.", "a call of something"),
        (b"\x80\x04t.", "not a well-formed pickle"),
        (b"\x80\x04}(])u.", "a dict key that is not text"),
        (b"\x80\x09.", "protocol 9"),
    ],
)
def test_foreign_and_hostile_bytes(tmp_path, data, reason):
    path = tmp_path / "foreign.jpc"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=reason) as caught:
        jpc.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change,reason",
    [
        (lambda n: n[-1].pop("params"), "has no parameters"),
        (lambda n: n[2].pop("params"), "has no parameters"),
        (lambda n: n[0].update(source_node=99), "shares its parameters with node 99"),
        (lambda n: n[0].update(source_node=3), "no Input"),
        (lambda n: n[0].update(scope=[1]), "variable 1 stands at position 0"),
        (lambda n: n[0].update(scope=[0, 1]), "not one variable"),
        (lambda n: n[-1].update(external_params=b""), "external parameters"),
        (lambda n: n[-1].update(surprise=1), "unknown field 'surprise'"),
        (lambda n: n[-1].update(normalization="both"), "neither global nor local"),
        (lambda n: n[-1].update(type="Root"), "type is not"),
        (lambda n: n[-1].update(block_size=2), "sum of one node"),
        (lambda n: n[-1].update(block_size=0), "positive integers"),
        (lambda n: n[-1].update(chs=(len(n) - 1,)), "does not stand before it"),
        (lambda n: n[3].update(edge_ids=n[3]["edge_ids"][::-1].copy()), "crosses the blocks"),
        (lambda n: n[4].update(edge_ids=n[4]["edge_ids"] + 1), "outside its"),
        (lambda n: n[4].update(edge_ids=n[4]["edge_ids"] * 0), "the same edge stands twice"),
        (lambda n: n[4].update(edge_ids=n[4]["edge_ids"][:, :1]), "do not fit edges"),
        (lambda n: n[4].update(params=n[4]["params"].astype(np.float64)), "dtype is f8, not float32"),
        (lambda n: n[4].update(params=np.asfortranarray(n[4]["params"])), "Fortran"),
        (lambda n: n[4].update(params=n[4]["params"].astype(">f4")), "little-endian"),
        (lambda n: n[4].update(params=[1.0]), "not an array"),
        (lambda n: n[2].update(params=n[2]["params"][:-1]), "emission parameters"),
        (lambda n: n[0].update(dist=jpc._distribution(7, "global")), "has 6 over 7"),
        (lambda n: n[0].pop("dist"), "without its distribution"),
        (lambda n: n.insert(0, dict(n[0])), "node"),
    ],
)
def test_fields_that_do_not_add_up(tmp_path, nodes, change, reason):
    change(nodes)
    path = write_nodes(tmp_path / "spoilt.jpc", nodes)
    with pytest.raises(ValueError, match=reason) as caught:
        jpc.read(path)
    assert str(path) in str(caught.value)


def test_a_small_file_cannot_ask_for_a_huge_dense_array(tmp_path):
    states = 60_000
    nodes = jpc._node_dicts(random_hmm(length=3, states=1, vocab=1))
    for node in nodes[:-1]:
        node.update(num_node_blocks=states, block_size=1)
        if node["type"] == "Product":
            node["edge_ids"] = np.repeat(np.arange(states)[:, None], len(node["chs"]), 1)
    nodes[2]["params"] = np.ones(states, np.float32)
    path = write_nodes(tmp_path / "sparse.jpc", nodes)
    with pytest.raises(ValueError, match="would become a dense array"):
        jpc.read(path)


def test_a_small_file_cannot_ask_for_many_blocks(tmp_path, nodes):
    nodes[3].update(num_node_blocks=2**31 - 1)
    path = write_nodes(tmp_path / "blocks.jpc", nodes)
    with pytest.raises(ValueError, match="crosses the blocks"):
        jpc.read(path)


def test_one_position_cannot_ask_for_a_huge_transition(tmp_path):
    states = 60_000
    nodes = jpc._node_dicts(random_hmm(length=1, states=1, vocab=1))
    for node in nodes[:2]:
        node.update(num_node_blocks=states)
    nodes[0]["params"] = np.ones(states, np.float32)
    nodes[1]["edge_ids"] = np.arange(states)[:, None]
    nodes[2]["edge_ids"] = np.stack([np.zeros(states, np.int64), np.arange(states)])
    nodes[2]["params"] = np.ones((states, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"would become a dense array \(60000, 60000\)"):
        jpc.read(write_nodes(tmp_path / "single.jpc", nodes))


def test_zero_param_mask_holds_entries_at_zero(tmp_path, nodes):
    mask = np.zeros(nodes[4]["params"].shape, bool)
    mask[0, 0, 1] = True
    nodes[4]["zero_param_mask"] = mask
    expected = random_hmm().transition.copy()
    expected[0, 1] = 0
    hmm = jpc.read(write_nodes(tmp_path / "masked.jpc", nodes))
    np.testing.assert_array_equal(np.asarray(hmm.transition), expected)


def test_partly_tied_emissions_are_expanded(tmp_path, nodes):
    nodes[1].pop("source_node")
    nodes[1]["params"] = nodes[2]["params"][::-1].copy()
    hmm = jpc.read(write_nodes(tmp_path / "partly.jpc", nodes))
    tied = nodes[2]["params"].reshape(6, 5)
    np.testing.assert_array_equal(np.asarray(hmm.emission), [tied, nodes[1]["params"].reshape(6, 5), tied])


def test_missing_file():
    with pytest.raises(FileNotFoundError, match="no such circuit file"):
        jpc.read("nowhere/model.jpc")
