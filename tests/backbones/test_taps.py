"""Hooks: what they read is what the full pass computes, and nothing of them stays."""

import diffusers
import pytest
import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.block_taps import fold_norm_weights, image_tokens, read_norm, tap_block
from ditf_probe.backbones.families import FAMILIES, WITHOUT_ADALN, Call, Modulation, first_input, output
from ditf_probe.backbones.taps import HookPoint, recording
from ditf_probe.errors import InputError


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def call_arguments(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if type(model).__name__ == "DiTTransformer2DModel":
        noisy = torch.randn(2, 3, 16, 16, generator=generator)
        return {"hidden_states": noisy, "timestep": torch.tensor([7, 7]), "class_labels": torch.tensor([1, 2])}
    return {
        "hidden_states": torch.randn(2, 16, 48, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 24, generator=generator),
        "pooled_projections": torch.randn(2, 20, generator=generator),
        "timestep": torch.tensor([0.3, 0.3]),
        "img_ids": torch.rand(16, 3, generator=generator),
        "txt_ids": torch.zeros(5, 3),
    }


@pytest.mark.parametrize(
    ("name", "tap", "indices"),
    [("dit", "attention", [0, 2]), ("dit", "mlp", [1, 2]), ("flux", "attention", [0, 3]), ("flux", "mlp", [0, 1])],
)
@torch.no_grad()
def test_early_exit_is_bit_equal_to_the_full_pass(
    name: str, tap: str, indices: list[int], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    taps = [tap_block(model, FAMILIES[type(model).__name__], index, tap) for index in indices]
    points = [point for found in taps for point in found.points()]
    records = {}
    for stop in (True, False):
        finished = []
        with recording(points, stop=stop) as record:
            finished.append(model(**call_arguments(model)))
        records[stop] = record
        assert len(finished) == (not stop)
    assert records[True].keys() == records[False].keys() == {point.key for point in points}
    for key, early in records[True].items():
        assert torch.equal(early, records[False][key])
    blocks = {stop: [found.assemble(records[stop], (4, 4)) for found in taps] for stop in records}
    for early, full in zip(blocks[True], blocks[False], strict=True):
        assert torch.equal(early.hidden_states, full.hidden_states)
        assert torch.equal(early.shift, full.shift)
        assert torch.equal(early.scale, full.scale)


def test_hooks_change_nothing_and_are_gone(dit: nn.Module) -> None:
    with torch.no_grad():
        before = dit(**call_arguments(dit)).sample
        point = HookPoint((0, "stream"), dit.transformer_blocks[0].norm1, "input", first_input)
        with recording([point], stop=False):
            model_output = dit(**call_arguments(dit)).sample
    assert torch.equal(before, model_output)
    assert hooks(dit) == 0


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_hooks_are_gone_after_a_run_and_after_an_exception(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    backbone = Backbone.from_model(model)
    images = torch.rand(1, 3, 8, 8)
    backbone(images, blocks=[0], timestep=5)
    assert hooks(model) == 0

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    handle = model.transformer_blocks[1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(ZeroDivisionError):
            backbone(images, blocks=[1], timestep=5)
    finally:
        handle.remove()
    assert hooks(model) == 0


def test_early_exit_skips_the_later_blocks(dit: nn.Module) -> None:
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(dit.transformer_blocks)
    ]
    Backbone.from_model(dit)(torch.rand(1, 3, 8, 8), blocks=[1], timestep=5)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_a_record_that_stays_empty_is_an_error() -> None:
    used, unused = nn.Linear(2, 2), nn.Linear(2, 2)
    point = HookPoint((0, "stream"), unused, "input", first_input)
    with pytest.raises(RuntimeError, match="never reached"), recording([point]):
        used(torch.zeros(1, 2))


def test_the_first_of_several_calls_counts() -> None:
    module = nn.Identity()
    points = [HookPoint((0, "in"), module, "input", first_input), HookPoint((0, "out"), module, "output", output)]
    with recording(points, stop=False) as record:
        module(torch.tensor(1.0))
        module(torch.tensor(2.0))
    assert {key[1]: float(value) for key, value in record.items()} == {"in": 1.0, "out": 1.0}


def test_a_nested_record_leaves_only_its_own_pass() -> None:
    outer, inner = nn.Identity(), nn.Identity()
    after = []
    with recording([HookPoint((0, "outer"), outer, "input", first_input)]) as record:
        with recording([HookPoint((1, "inner"), inner, "input", first_input)]):
            inner(torch.zeros(1))
        after.append("between")
        outer(torch.zeros(1))
        after.append("never")
    assert after == ["between"]
    assert list(record) == [(0, "outer")]


def test_image_tokens() -> None:
    stream = torch.arange(6.0).reshape(1, 6, 1)
    assert image_tokens(stream, 4, "text_first").flatten().tolist() == [2, 3, 4, 5]
    assert image_tokens(stream, 4, "image_first").flatten().tolist() == [0, 1, 2, 3]
    for count, order in ((4, "image_only"), (7, "text_first")):
        with pytest.raises(RuntimeError, match="image tokens"):
            image_tokens(stream, count, order)


def test_image_tokens_directly_after_texts_of_unequal_length() -> None:
    stream = torch.arange(12.0).reshape(2, 6, 1)
    assert image_tokens(stream, 3, "after_text", torch.tensor([1, 3])).flatten().tolist() == [1, 2, 3, 9, 10, 11]


def test_norms_are_read_from_the_module() -> None:
    assert read_norm(nn.LayerNorm(4, eps=1e-3)) == read_norm(nn.LayerNorm(4, eps=1e-3, elementwise_affine=False))
    assert (read_norm(nn.LayerNorm(4, eps=1e-3)).kind, read_norm(nn.LayerNorm(4, eps=1e-3)).eps) == ("layer_norm", 1e-3)
    assert read_norm(nn.RMSNorm(4, eps=1e-4)).kind == "rms_norm"
    with pytest.raises(RuntimeError, match="BatchNorm"):
        read_norm(nn.BatchNorm1d(4))


@pytest.mark.parametrize("with_shift", [True, False])
@pytest.mark.parametrize("with_scale", [True, False])
def test_folded_weights_of_a_norm(with_shift: bool, with_scale: bool) -> None:
    norm = nn.LayerNorm(6)
    norm.weight.data, norm.bias.data = torch.randn(2, 6)
    x, shift, scale = torch.randn(2, 3, 6), torch.randn(2, 6) * with_shift, torch.randn(2, 6) * with_scale
    expected = norm(x) * (1 + scale[:, None]) + shift[:, None]
    new_shift, new_scale = fold_norm_weights(norm, shift if with_shift else None, scale if with_scale else None)
    plain = nn.functional.layer_norm(x, (6,))
    found = plain * (1 + new_scale.reshape(-1, 1, 6)) + new_shift.reshape(-1, 1, 6)
    torch.testing.assert_close(found, expected)


def test_folded_weights_that_count_from_zero() -> None:
    norm = nn.RMSNorm(6, eps=1e-6)
    norm.weight.data = torch.randn(6)
    x, scale = torch.randn(2, 3, 6), torch.randn(2, 6)
    expected = nn.functional.rms_norm(x, (6,), 1 + norm.weight, 1e-6) * (1 + scale[:, None])
    shift, folded = fold_norm_weights(norm, None, scale, offset=1.0)
    assert shift is None
    torch.testing.assert_close(nn.functional.rms_norm(x, (6,), eps=1e-6) * (1 + folded[:, None]), expected)


def test_an_argument_is_found_however_it_was_passed() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return x + time

    given = torch.ones(1)
    for args, kwargs in (((None, given), {}), ((None,), {"time": given})):
        assert Call(Block(), args, kwargs).argument("time") is given


def test_an_entry_can_take_modulation_from_a_table_or_from_the_model() -> None:
    """The forms that PixArt (table + embedding) and Flux2 (one modulation for all blocks) need."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return x + timestep.sum()

    block = Block()
    entry = Modulation(
        "", at="input", read=lambda call: call.module.table[None] + call.kwargs["timestep"].reshape(-1, 6, 4)
    )
    point = HookPoint((0, "modulation"), block.get_submodule(entry.module), entry.at, entry.read)
    embedding = torch.randn(2, 24)
    with recording([point]) as record:
        block(torch.zeros(2, 3, 4), timestep=embedding)
    torch.testing.assert_close(record[0, "modulation"], block.table[None] + embedding.reshape(2, 6, 4))


def test_weights_in_half_precision_are_folded_in_float32() -> None:
    norm = nn.LayerNorm(6).to(torch.bfloat16)
    norm.weight.data, norm.bias.data = torch.randn(2, 6).to(torch.bfloat16)
    shift, scale = torch.randn(2, 4, 6).to(torch.bfloat16)
    new_shift, new_scale = fold_norm_weights(norm, shift, scale)
    torch.testing.assert_close(new_scale, norm.weight.float() * (1 + scale.float()) - 1)
    torch.testing.assert_close(new_shift, norm.bias.float() * (1 + scale.float()) + shift.float())


def test_a_class_without_adaln_is_refused_with_its_nearest_use() -> None:
    class OmniGenTransformer2DModel(nn.Module):
        """Stands for the class of diffusers by its name, which is what entries go by."""

    with pytest.raises(InputError, match="has no AdaLN to read; models without go with modulation: none"):
        Backbone.from_model(OmniGenTransformer2DModel())
    assert all(hasattr(diffusers, name) and name not in FAMILIES for name in WITHOUT_ADALN)
