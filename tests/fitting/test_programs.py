"""What is read off a compiled program."""

from codd_jax.fitting.programs import count_collectives


def test_collectives_are_counted_with_their_sizes():
    text = """
      %a = bf16[2,768,4096]{2,1,0:T(8,128)(2,1)S(1)} all-reduce(%x), channel_id=1
      %b = (f32[2,32]{1,0}, f32[2,32]{1,0}) all-reduce(%x, %y), channel_id=2
      %c = (s32[2,8]{1,0}, s32[2,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3
      %d = f32[2]{0} add(%all-reduce.1, %y)
      %e = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), channel_id=4
    """
    assert count_collectives(text) == {
        "all-reduce": (2, 2 * 768 * 4096 * 2 + 2 * 2 * 32 * 4),
        "collective-permute": (1, 64),
        "all-gather": (1, 128),
    }
