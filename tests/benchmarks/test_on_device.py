"""What is measured on one device, at tiny sizes on the CPU."""

import json
import math

import pytest
import torch

from ditf_probe.errors import InputError

LARGE = ["--device", "cpu", "--dtype", "float32", "--tiny", "--rows", "4", "--repeats", "2", "--threads", "1"]
MATCHING = ["--channels", "16", "--grid", "8", "9", "--image", "64", "72", "--keypoints", "4", "--threads", "1"]
TRAINING = [
    "--channels",
    "24",
    "--images",
    "3",
    "--grid",
    "5",
    "6",
    "--batch-size",
    "2",
    "--steps",
    "2",
    "--width",
    "8",
]
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def rows_of(output):
    """The cells of printed rows of Markdown, by their first two."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if "|" in line]
    return {tuple(line[:2]): line[2:] for line in lines if not line[0].startswith("-")}


@NO_CUDA
@pytest.mark.parametrize("name", ["agreement", "large_models", "matching", "probe_training"])
def test_a_device_that_is_not_there_is_refused(name, benchmark, capsys):
    assert benchmark("__main__").main([name, "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: `device` is 'cuda': this machine does not have it, use auto or cpu\n"


def test_large_models(benchmark, tmp_path, capsys):
    """Of a very small model of each class; all ways find the same features, and the truncated model is smaller."""
    numbers = tmp_path / "numbers.json"
    families = ["flux", "sd35_large", "pixart_alpha", "dit_xl"]
    sizes = ["--sides", "16", "--ensembles", "2", "--repeats", "1"]
    benchmark("large_models").main([*LARGE, *sizes, "--families", *families, "--json", str(numbers)])
    results = json.loads(numbers.read_text())["results"]
    assert list(results) == families
    for found in results.values():
        cells = {cell["way"]: cell for cell in found["cells"]}
        assert list(cells) == ["plain", "early exit", "truncated"]
        for way, cell in cells.items():
            assert cell["images"] == 2
            assert cell["images_per_second"] == pytest.approx(cell["images"] / cell["median"])
            assert cell["peak_gb"] >= cell["weights_gb"] > 0
            assert (cell["differs"] == 0.0) == (way == "plain")
            assert cell["differs"] < 1e-5
        assert cells["truncated"]["parameters"] < cells["plain"]["parameters"]
        assert [gain["way"] for gain in found["gains"]] == ["early exit", "truncated"]
    assert len(rows_of(capsys.readouterr().out)["flux", "truncated"]) == 4, "the table of ratios comes last"


def test_large_models_go_on_after_a_failure(benchmark, tmp_path, capsys):
    """18 is no multiple of the stride: those rows say so, the others are measured, and the command fails."""
    numbers = tmp_path / "numbers.json"
    arguments = [*LARGE, "--families", "dit_xl", "--sides", "18", "16", "--ensembles", "1", "--json", str(numbers)]
    assert benchmark("__main__").main(["large_models", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err == (
        "error: `--families` is 'dit_xl plain, dit_xl early exit, dit_xl truncated': failed, see their rows for the "
        "reason\n"
    )
    cells = json.loads(numbers.read_text())["results"]["dit_xl"]["cells"]
    assert {cell["side"] for cell in cells if "error" in cell} == {18}
    assert {cell["way"] for cell in cells if "error" not in cell} == {"plain", "early exit", "truncated"}


def test_random_weights_make_neither_constant_nor_idle_modulations(benchmark):
    """In the dtype that is asked for from the first, with a scale and a shift at every block."""
    subject = benchmark("large_subjects").build("pixart_alpha", torch.device("cpu"), torch.bfloat16, 4, tiny=True)
    dtypes = {weight.dtype for weight in subject.backbone.parameters()}
    assert dtypes == {torch.bfloat16}
    assert not any(weight.is_meta for weight in subject.backbone.state_dict().values())
    side = 4 * subject.backbone.stride
    images = torch.rand(2, 3, side, side)
    taps = {"blocks": [0, subject.block], "timestep": subject.timestep, "tap": "mlp", "conditions": subject.prompt}
    for tapped in subject.backbone(images, **taps).values():
        assert tapped.scale.float().abs().mean() > 0.1
        assert tapped.shift.float().std() > 0.1
        assert 0.1 < tapped.hidden_states.float().std() < 100


def test_matching_of_batches(benchmark, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    batches = ["--batches", "1", "3", "--repeats", "2", "--json", str(numbers)]
    benchmark("matching").main([*MATCHING, "--device", "cpu", *batches])
    written = json.loads(numbers.read_text())
    found = {(x["method"], x["dtype"], x["batch"]): x for x in written["results"]["batches"]}
    assert len(found) == 2 * (2 + 2 * 2)
    for (method, dtype, batch), x in found.items():
        loop = method in ("reference", "vectorised")
        assert x["pairs"] == (2 if loop else batch)
        assert x["compared"] == 4 * min(x["pairs"], 2)
        assert x["pairs_per_second"] == pytest.approx(x["pairs"] / x["median"])
        if dtype == "float32" or not loop:  # loops round cosines to the dtype of the features
            assert x["same_pixels"] == x["compared"]
    assert "exact, together" in capsys.readouterr().out


def test_a_method_that_finds_other_pixels_is_shown(benchmark, monkeypatch):
    on_device, methods = benchmark("matching_on_device"), benchmark("matching_methods")
    wrong = methods.METHODS["exact"]._replace(match=lambda *case: (case[2] * 0 + 20, torch.zeros(len(case[2]))))
    monkeypatch.setitem(methods.METHODS, "exact", wrong)
    options = benchmark("matching").parse([*MATCHING, "--batches", "1", "--dtypes", "float32", "--repeats", "1"])
    found = on_device.measure_batches(options, torch.device("cpu"), lambda facts: None)
    assert {x["method"]: x["same_pixels"] for x in found if x["method"] != "vectorised"} == {
        "reference": 4,
        "exact": 0,
        "exact, together": 4,
    }


def test_a_method_that_fails_is_among_the_rows(benchmark, monkeypatch, capsys):
    def fail(*case):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 11 GiB")

    methods = benchmark("matching_methods")
    monkeypatch.setitem(methods.METHODS, "vectorised", methods.METHODS["vectorised"]._replace(match=fail))
    arguments = [*MATCHING, "--device", "cpu", "--batches", "1", "--dtypes", "float32", "--repeats", "1"]
    assert benchmark("__main__").main(["matching", *arguments]) == 2
    output = capsys.readouterr()
    assert "failed: vectorised float32 1, see their rows" in output.err
    assert (
        rows_of(output.out)["vectorised", "float32"][1]
        == "OutOfMemoryError: CUDA out of memory. Tried to allocate 11 GiB"
    )
    assert ("exact, together", "float32") in rows_of(output.out)


def test_agreement_of_families(benchmark, tmp_path, capsys):
    numbers, names = tmp_path / "numbers.json", ["FluxTransformer2DModel", "UNet2DConditionModel", "convnext_atto"]
    names.append("ditf-tiny")
    benchmark("agreement").main(["--device", "cpu", "--families", *names, "--json", str(numbers)])
    found = json.loads(numbers.read_text())["results"]["features"]
    assert list(found) == names
    for result in found.values():
        assert result["float32"]["max"] < 1e-5
        assert 1e-4 < result["bfloat16"]["median"] <= result["bfloat16"]["max"] < 0.1, "both dtypes were computed"
        assert len(result["bfloat16"]["every"]) == result["maps"] >= 4
    assert rows_of(capsys.readouterr().out)["ditf-tiny", "24"][0] == "0.0e+00"
    with pytest.raises(InputError, match="`--families` is 'none': use some of CogView3PlusTransformer2DModel"):
        benchmark("agreement").main(["--device", "cpu", "--families", "none"])


def test_every_family_has_a_model_to_compare(benchmark):
    """All classes of diffusers with an entry, and one model at least of each of the other backbones."""
    from ditf_probe.backbones.families import FAMILIES

    builders = benchmark("agreement_models").builders()
    assert set(builders) == {
        *FAMILIES,
        *("UNet2DConditionModel", "convnext_atto", "ditf-tiny"),
        *("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"),
    }


def test_errors_are_relative_lengths(benchmark):
    found = benchmark("agreement_models").errors(iter([torch.tensor([3.0, 4.0])]), [torch.tensor([3.0, 0.0])])
    assert found == [pytest.approx(4 / 3)]


def test_pck_is_read_from_the_comparisons(benchmark, runs_here, willow, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    rows = ["--families", "ditf-tiny", "--rows", "raw", "--root", str(willow)]
    benchmark("agreement").main(["--device", "cpu", *rows, "--json", str(numbers)])
    found = json.loads(numbers.read_text())["results"]["pck"]
    assert list(found) == ["0 cpu float32", "1 cpu float32", "2 cpu bfloat16"]
    for result in found.values():
        assert set(result["pck"]) == {"raw"}
        assert all(0 <= value <= 100 for value in result["pck"].values())
        assert result["seconds"] == 2.0
    assert [words[-3].partition("dtype=")[2] for words in runs_here] == ["float32", "float32", "bfloat16"]
    assert "| cpu bfloat16 |" in capsys.readouterr().out


def test_probe_training(benchmark, tmp_path, capsys):
    numbers, folder = tmp_path / "numbers.json", tmp_path / "disk"
    sizes = [*TRAINING, "--keypoints", "3", "--repeats", "2", "--threads", "1", "--folder", str(folder)]
    folder.mkdir()
    benchmark("probe_training").main([*sizes, "--device", "cpu", "--json", str(numbers)])
    results = json.loads(numbers.read_text())["results"]
    assert list(results) == ["linear", "aggregation"]
    for found, blocks in zip(results.values(), (1, 2), strict=True):
        assert all(0 < value < math.inf for key in ("loop", "on_device") for value in found[key]["every"])
        assert all(0 <= value < 1 for value in found["waiting"]["every"])
        assert found["batch_mb"] % (blocks * (30 * 24 * 2 + 3 * 24 * 4) / 1e6) == pytest.approx(0, abs=1e-9)
    assert "aggregation, on device over loop" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_steps_of_the_probe_benchmark_train(benchmark, tmp_path):
    """Its steps learn: on one batch that stays the loss falls, and it is that of the batches of a real reader."""
    training, cached = benchmark("probe_training"), benchmark("cached_features")
    options = training.parser().parse_args([*TRAINING, "--keypoints", "3", "--precision", "float32"])
    dataset = cached.NoisePairs(3, 8, (80, 96), 3)
    stream = cached.stored_stream(tmp_path, dataset, 24, [0, 1], torch.device("cpu"), "bfloat16")
    assert len(stream.bank) == 3
    one = training.Training("linear", stream, options, torch.device("cpu"))
    batch = next(training.loaded(one, dataset, options))

    def loss():
        sources, targets = one.describe(batch, {"linear": one.head})["linear"]
        return one.loss(sources, targets, batch.pairs)[0].item()

    before = loss()
    training.loop(one, training.repeated(batch), 20)
    assert loss() < 0.9 * before
