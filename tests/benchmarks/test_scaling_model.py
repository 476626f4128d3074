"""The scaling model against hand-computed values, against counted operations, and against its own documentation."""

import itertools
import json
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.truncation import truncate
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.errors import InputError
from ditf_probe.matching import match_keypoints

ROOT = Path(__file__).parents[2]
FLUX = "FLUX.1-dev"
TINY_CHECK = {
    **{"heads": 1, "blocks": 1, "side": 4, "pixels": 16, "image": 24},
    **{"keypoints": 2, "images": 2, "repeats": 1, "threads": 1},
}


@pytest.fixture(autouse=True)
def scaling(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The parts of the scaling model of this checkout."""
    monkeypatch.syspath_prepend(str(ROOT))
    parts = ("images", "machines", "pairs", "report", "results", "tables", "transformers")
    return SimpleNamespace(**{name: import_module(f"benchmarks.scaling.{name}") for name in parts})


def test_flux_by_hand(scaling):
    """Layer by layer, at 960x960 pixels up to the first AdaLN of block 28."""
    width, tokens, text = 3072, 60 * 60, 512
    cost = scaling.images.image_cost(FLUX)
    assert (cost.tokens, cost.text, cost.channels) == (tokens, text, width)
    assert (cost.block, cost.tap, cost.size) == (28, "attention", (960, 960))
    assert cost.parameters == 7_804_489_472, "as `ditf-probe info` counts them"
    assert cost.stored(torch.bfloat16) == 3600 * 3072 * 2 + 3 * 3072 * 4 == 22_155_264
    assert cost.stored(torch.float32) == 3600 * 3072 * 4 + 3 * 3072 * 4 == 44_273_664
    double_image = double_text = 12 * width**2  # query, key, value, out; MLP of four times the width
    single = 12 * width**2  # query, key, value; MLP; out of both
    once = 19 * 2 * 6 * width**2 + 10 * 3 * width**2  # modulations, that of block 28 included
    once += 2 * (256 + width) * width + (768 + width) * width  # time, guidance, pooled text
    rows = tokens * (19 * double_image + 64 * width) + text * (19 * double_text + 4096 * width)
    assert cost.one_pass.linear == 2 * (rows + (tokens + text) * 9 * single + once)
    assert cost.one_pass.attention == 28 * 4 * (tokens + text) ** 2 * width
    assert cost.operations(8) - cost.operations(1) == 7 * cost.one_pass.total


def test_flux_in_full_size_counted(scaling):
    """The whole transformer, in a pass without numbers."""
    model = scaling.images.MODELS[FLUX]
    transformer = scaling.images.build_skeleton(diffusers.FluxTransformer2DModel, model.config).to("meta")

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        transformer(
            hidden_states=empty(1, 3600, 64),
            encoder_hidden_states=empty(1, 512, 4096),
            pooled_projections=empty(1, 768),
            timestep=empty(1),
            guidance=empty(1),
            img_ids=empty(3600, 3),
            txt_ids=empty(512, 3),
        )
    assert scaling.images.image_cost(FLUX).whole_pass.total == pytest.approx(counter.get_total_flops(), rel=1e-3)


def counted(backbone, prompts, block, tap, ensemble):
    images = torch.rand(1, 3, 8 * backbone.stride, 6 * backbone.stride)
    # The fused attention of the CPU is not among the operations that are counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backbone(images, blocks=[block], timestep=300, tap=tap, conditions=prompts, ensemble=ensemble)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "block", "tap", "text"),
    [
        ("DiTTransformer2DModel", 1, "mlp", 0),
        ("PixArtTransformer2DModel", 2, "mlp", 7),  # cross attention
        ("SD3Transformer2DModel", 1, "mlp", 7),  # joint
        ("SD3Transformer2DModel", 2, "attention", 7),
        ("FluxTransformer2DModel", 0, "mlp", 7),
        ("FluxTransformer2DModel", 2, "attention", 7),  # single stream
    ],
)
def test_operations_are_those_that_a_real_pass_counts(scaling, name, block, tap, text):
    family = FAMILIES[name]
    vae = getattr(diffusers, family.vae)(**AUTOENCODERS[family.vae].tiny)
    backbone = DiffusionBackbone(getattr(diffusers, name)(**family.tiny), vae=vae)
    prompts = None
    if text:
        shape = family.text(backbone.transformer.config)
        pooled = None if shape.pooled is None else torch.randn(1, shape.pooled)
        prompts = PromptEmbeddings(torch.randn(1, text, shape.width), pooled)
    one, three = (counted(backbone, prompts, block, tap, draws) for draws in (1, 3))
    truncate(backbone.transformer, family, block, tap)
    predicted = scaling.transformers.layers_of(backbone.transformer).one_pass(48, text)
    assert predicted.total == pytest.approx((three - one) / 2, rel=0.005)
    assert predicted.attention > 0.02 * predicted.total, "too small to be seen within the tolerance"
    assert one - predicted.total > 0, "the autoencoder, once whatever the ensemble"


def test_encoder_by_hand(scaling):
    """Four levels of two blocks, their shortcuts and strides, and one attention over the latents."""
    height, width, latents = 64, 48, 16

    def convolution(inputs: int, outputs: int, level: int, side: int = 3) -> int:
        return 2 * inputs * outputs * side**2 * (height >> level) * (width >> level)

    total, last = convolution(3, 128, 0), 128
    for level, channels in enumerate((128, 256, 512, 512)):
        total += convolution(last, channels, level) + 3 * convolution(channels, channels, level)
        total += convolution(last, channels, level, side=1) if last != channels else 0
        total += convolution(channels, channels, level + 1) if level < 3 else 0
        last = channels
    cells = height * width // 64
    total += 4 * convolution(512, 512, 3) + 4 * 2 * 512**2 * cells + 4 * cells**2 * 512
    assert scaling.images.encoder_operations(latents, (height, width)) == total + convolution(512, 2 * latents, 3)


def test_a_class_without_anatomy_is_named(scaling):
    with pytest.raises(InputError, match="AuraFlowTransformer2DModel"):
        scaling.transformers.layers_of(
            diffusers.AuraFlowTransformer2DModel(**FAMILIES["AuraFlowTransformer2DModel"].tiny)
        )


def test_published_parameters(scaling):
    """Those of the whole models, in billions: 0.68 with one table of classes per block, 0.61, 2.03, 8.06, 11.90."""
    found = {name: scaling.images.skeleton(name) for name in scaling.images.BACKBONES}
    totals = [round(item.described.total.parameters / 1e9, 2) for item in found.values()]
    assert totals[1:] == [0.61, 2.03, 8.06, 11.9]
    assert 0.67 < totals[0] < 0.78


def test_matching_of_the_published_size(scaling):
    """3072 channels, 40x30 grid, 500x375 pixels, 15 keypoints, beside the peaks that RESULTS.md measured."""
    size = scaling.pairs.PairSize(3072, (30, 40), (375, 500), 15)
    exact, vectorised, reference = (scaling.pairs.pair_cost(method, size) for method in scaling.pairs.METHODS)
    assert exact.channel_operations == 3072 * 1200 * (2 * 15 + 10)
    assert exact.pixel_operations == 30 * 500 * (15 * 18 + 30), "rows of the grid, columns of the image"
    assert vectorised.channel_operations == 3072 * 375 * 500 * (7 + 3 + 2 * 15)
    assert reference.channel_operations == 3072 * 375 * 500 * (14 + 15 * 5)
    assert vectorised.peak == 2_304_000_000 == pytest.approx(2380e6, rel=0.05)
    assert reference.peak == 6_912_000_000 == pytest.approx(6917e6, rel=0.01)
    assert exact.peak < 24e6
    assert exact.traffic < vectorised.traffic < reference.traffic


def test_matrix_products_of_matching_are_those_counted(scaling, benchmark):
    size = scaling.pairs.PairSize(24, (5, 6), (20, 30), 4)
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 24, 5, 6, generator=generator)
    target = source + 0.1 * target  # clear matches: not a single map is compared pixel by pixel
    keypoints = torch.rand(4, 2, generator=generator) * 19
    with FlopCounterMode(display=False) as counter:
        match_keypoints(source, target, keypoints, size.image, size.image)
    gram = 10 * size.channels * size.cells  # sums of products, no matrix products
    assert scaling.pairs.pair_cost("exact", size).channel_operations - gram == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        benchmark("matching_methods").vectorised(source, target, keypoints, size.image)
    upsampling_and_lengths = 10 * size.channels * size.pixels
    cost = scaling.pairs.pair_cost("vectorised", size)
    assert cost.channel_operations - upsampling_and_lengths == counter.get_total_flops()


def round_machine(scaling):
    """Numbers that are easy to divide by."""
    node = {"gpus_per_node": 4, "cores": 2, "decode": 10, "ram": 1, "pair_overhead": 1}
    disks = {"disk_write": 1, "disk_read": 2, "network": 3, "shared_write": 5, "shared_read": 10}
    return scaling.machines.Machine(peak=100, utilisation=0.5, peak_float64=1, hbm=1000, pcie=10, **node, **disks)


def round_cost(scaling):
    """10^12 operations with one draw and 9 * 10^12 with nine; 10^6 tokens of one channel."""
    trillion = scaling.transformers.PassCost(10**12, 0)
    facts = {"block": 0, "tap": "mlp", "size": (1000, 1000), "grid": (1000, 1000), "text": 0, "channels": 1}
    amounts = {"parameters": 0, "weights": 10**9, "one_pass": trillion, "whole_pass": trillion, "vae": 0}
    return scaling.images.ImageCost(name="round", **facts, **amounts)


def test_times_by_hand(scaling):
    machine, cost = round_machine(scaling), round_cost(scaling)
    one = scaling.machines.extraction(cost, 1000, 1, torch.bfloat16, machine, 1)
    assert one.before == pytest.approx(1 / 2 + 1 / 10), "read from the disk, then copied"
    entry = 2 * 10**6 + 12
    assert one.stages == pytest.approx(
        {
            "decode": 1000 * 0.01 / 2,
            "copy": 1000 * (12 * 10**6 + entry) / 10**10,
            "compute": 1000 / 50,
            "disk write": 1000 * entry / 10**9,
        }
    )
    assert (one.seconds, one.limit) == (pytest.approx(20.6), "compute")
    many = scaling.machines.extraction(cost, 1000, 1, torch.bfloat16, machine, 8)
    assert many.stages["disk write"] == pytest.approx(1000 * entry / (5 * 10**9)), "two nodes reach the shared storage"
    assert many.stages["compute"] == pytest.approx(1000 / 400)
    assert machine.read_rate(8) == 2 * 3 * 10**9, "their network is slower than the storage"
    few = scaling.machines.extraction(cost, 1, 1, torch.bfloat16, machine, 1)
    assert few.limit == "weights"


def test_matching_reads_what_memory_does_not_hold(scaling):
    machine, cost = round_machine(scaling), round_cost(scaling)
    pair = scaling.pairs.PairSize(1, (1000, 1000), (10, 10), 1)
    entry = cost.stored(torch.bfloat16)
    fits, too_many = (scaling.machines.Workload("", images, 10_000) for images in (500, 600))
    assert 500 * entry < 2**30 < 600 * entry
    inside, beyond = (
        scaling.machines.matching(cost, pair, work, torch.bfloat16, machine, 1).stages for work in (fits, too_many)
    )
    assert inside["disk read"] == pytest.approx(500 * entry / (2 * 10**9)), "each image once"
    assert beyond["RAM (disk read)"] == pytest.approx(2 * 10_000 * entry / (2 * 10**9)), "both images of every pair"
    assert inside["copy"] == beyond["copy"] == pytest.approx(2 * 10_000 * entry / 10**10)
    assert inside["matching"] > 10_000 * 1e-3


def test_more_of_anything_is_never_slower(scaling):
    """Each resource doubled (times per piece halved), for all backbones, works, draws and numbers of GPUs."""
    base, slower = scaling.machines.Machine(), {"decode", "pair_overhead"}
    costs = [scaling.images.image_cost(name) for name in scaling.images.BACKBONES]
    works = [scaling.machines.Workload("", *counts) for counts in ((1800, 12_234), (10**7, 10**7))]

    def times(machine):
        for cost, work, gpus in itertools.product(costs, works, (1, 8, 64)):
            pair = scaling.pairs.PairSize(cost.channels, cost.grid, (375, 500), 15)
            yield scaling.machines.matching(cost, pair, work, torch.bfloat16, machine, gpus).seconds
            for draws in (1, 8):
                yield scaling.machines.extraction(cost, work.images, draws, torch.bfloat16, machine, gpus).seconds

    before = list(times(base))
    for field in fields(base):
        if field.name != "gpus_per_node":
            factor = 0.5 if field.name in slower else 2.0
            after = list(times(replace(base, **{field.name: factor * getattr(base, field.name)})))
            assert all(new <= old for new, old in zip(after, before, strict=True)), field.name
    assert all(seconds > 0 for seconds in before)


def test_costs_grow_with_sizes(scaling):
    small, large = (scaling.images.image_cost("PixArt-alpha", size) for size in ((480, 640), (960, 960)))
    assert small.grid == (30, 40)
    for read in (lambda c: c.one_pass.linear, lambda c: c.one_pass.attention, lambda c: c.vae, lambda c: c.tokens):
        assert read(small) < read(large)
    assert small.one_pass.attention / small.one_pass.linear < large.one_pass.attention / large.one_pass.linear
    assert small.parameters == large.parameters
    assert large.one_pass.total < large.whole_pass.total
    size = scaling.pairs.PairSize(64, (10, 12), (50, 60), 5)
    larger = [{"channels": 128}, {"grid": (20, 12)}, {"image": (100, 120)}, {"keypoints": 10}]
    for method, change in itertools.product(scaling.pairs.METHODS, larger):
        before, after = (scaling.pairs.pair_cost(method, s) for s in (size, replace(size, **change)))
        assert (after.operations, after.traffic) >= (before.operations, before.traffic)
        assert after.operations > before.operations or (method != "exact" and "grid" in change)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0124, "12.4 ms"), (61, "1.02 min"), (7200, "2.00 h"), (8.6e6, "99.5 d"), (1e8, "1,157 d")]
)
def test_readable(scaling, seconds, words):
    assert scaling.tables.readable_time(seconds) == words
    assert scaling.tables.readable_bytes(22_155_264) == "22.2 MB"
    assert scaling.tables.readable_operations(3.6e13) == "36.0 T"


def test_documentation_is_in_step(benchmark, capsys):
    """The tables of the page are those that the command prints."""
    module = benchmark("scaling_model")
    module.main([])
    printed = capsys.readouterr().out.strip()
    shown = (ROOT / "docs" / "scaling.md").read_text().split(module.BEGIN)[1].split(module.END)[0].strip()
    assert shown == printed, "run: python -m benchmarks scaling_model --write docs/scaling.md"


def test_tables_are_replaced_in_place(benchmark, tmp_path, capsys):
    module, page, empty = benchmark("scaling_model"), tmp_path / "page.md", tmp_path / "empty.md"
    page.write_text(f"before\n{module.BEGIN}\nold\n{module.END}\nafter\n")
    words = ["--backbones", FLUX, "--workload", "mine", "10", "0"]
    module.main([*words, "--write", str(page)])
    assert capsys.readouterr().out == ""
    module.main(words)
    printed = capsys.readouterr().out.strip()
    assert page.read_text() == f"before\n{module.BEGIN}\n\n{printed}\n\n{module.END}\nafter\n"
    empty.write_text("")
    with pytest.raises(InputError, match="--write"):
        module.main([*words, "--write", str(empty)])


def test_sizes_and_works_as_arguments(benchmark, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    words = ["--backbones", FLUX, "--size", "480", "640", "--ensemble", "2", "--gpus", "3", "--keypoints", "5"]
    benchmark("scaling_model").main([*words, "--workload", "mine", "10", "0", "--cores", "0.5", "--json", str(file)])
    shown = capsys.readouterr().out
    assert "640x480" in shown
    assert "mine: extraction of 10 images" in shown
    assert "| `--cores` | 0.5 cores |" in shown
    assert "matching of" not in shown, "no pairs"
    written = json.loads(file.read_text())
    (image,), (estimate,) = written["results"]["images"], written["results"]["estimates"]
    assert (image["tokens"], image["grid"]) == (1200, [30, 40])
    assert estimate["extraction"]["stages"]["decode"] == pytest.approx(10 * 0.04 / (3 * 0.5))
    assert written["settings"]["keypoints"] == 5


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--backbones", FLUX, "--size", "100", "100"], "multiples of 16"),
        (["--workload", "mine", "ten", "0"], "--workload"),
        (["--workload", "mine", "0", "0"], "--workload"),
    ],
)
def test_bad_arguments_end_in_one_line(benchmark, capsys, words, reason):
    assert import_module("benchmarks.__main__").main(["scaling_model", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert reason in error
    assert "\n" not in error


def test_check_measures_every_resource(benchmark, tmp_path, capsys):
    file, folder = tmp_path / "numbers.json", tmp_path / "disk"
    sizes = [word for name, size in TINY_CHECK.items() for word in (f"--check-{name}", str(size))]
    benchmark("scaling_model").main(["--check", *sizes, "--folder", str(folder), "--json", str(file)])
    points = json.loads(file.read_text())["results"]["check"]
    found = [point["resource"] for point in points]
    assert found == [
        *["transformer"] * 3,
        "autoencoder",
        *["matching, exact"] * 2,
        *["matching, vectorised", "matching, reference", "store, write", "store, read", "decode"],
    ]
    for point in points:
        assert point["predicted"] > 0
        assert point["ratio"] == pytest.approx(point["measured"] / point["predicted"])
        assert point["measured"] > 0
    shown = capsys.readouterr().out
    assert "SD3 x 1, 36 + 64 tokens" in shown
    assert all(point["size"] in shown for point in points)
    assert list(folder.iterdir()) == []
