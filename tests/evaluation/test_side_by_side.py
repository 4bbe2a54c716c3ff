"""One prompt, backbone alone beside CoDD, with a scripted model."""

import json

from codd_jax.decoding.config import DecodeConfig
from codd_jax.evaluation import side_by_side
from tests.oracles.scripted_model import ScriptedModel


class TwoFaced(ScriptedModel):
    """Says which coupling it was asked for; takes text prompts."""

    def generate(self, prompts, config, *, seed, system):
        (prompt,) = prompts
        assert isinstance(prompt, str) and system is None
        self._answer = lambda prompt, seed: f"{config.coupling}, {config.windows}: {prompt}\n\n" + "word " * 30
        return self._answer_row(self.tokenizer(prompt)["input_ids"], config, seed)


def test_columns_are_the_backbone_alone_and_codd(tmp_path):
    model = TwoFaced(None)
    decode = DecodeConfig(steps=8, gen_length=16, block_length=None, windows="cover", coupling="any_order")
    columns = side_by_side.compare(model, "Hi?", decode, system=None, seed=0)
    assert [column.text.splitlines()[0] for column in columns] == ["none, None: Hi?", "any_order, cover: Hi?"]
    assert [column.title for column in columns] == ["backbone alone", "CoDD (any-order coupling)"]
    shown = side_by_side.render(columns, width=60).splitlines()
    assert max(map(len, shown)) <= 60
    assert shown[0].split("│")[0].strip() == "backbone alone"
    assert shown[3].split("│")[1].strip().startswith("any_order")
    written = json.loads(side_by_side.write(tmp_path / "new", "Hi?", columns, decode, 0).read_text())
    assert [column["text"] for column in written["columns"]] == [column.text for column in columns]
    assert (written["prompt"], written["decoding"]["steps"]) == ("Hi?", 8)


def test_without_a_circuit_there_is_one_column():
    decode = DecodeConfig(steps=8, gen_length=16, coupling="none")
    assert len(side_by_side.compare(TwoFaced(None), "Hi?", decode, system=None, seed=0)) == 1
