"""The ablation: which rows it has, that they are those of a comparison, and what it leaves behind."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonschema
import lightning as L
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ditf_probe
from ditf_probe.cli import evaluate
from ditf_probe.comparison import report, report_from_predictions
from ditf_probe.comparison.ablation import ablation_cells
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.errors import InputError
from ditf_probe.features.channels import ChannelPick
from ditf_probe.probes import LinearProbe
from ditf_probe.tasks import AblationTask, CorrespondenceTask, ProbeTask
from ditf_probe.tasks.ablation import PREPARED_BYTES, Ablation
from ditf_probe.tasks.matchers import FeatureMatcher
from ditf_probe.tasks.planning import streams_of
from ditf_probe.tasks.records import RunResult
from ditf_probe.tasks.rows import ROW_NAMES, chosen_rows
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]
SMALL = Ablation(modulations=["none", "whiten", "adaln"], counts=[0, 1, 4], seeds=[3], conditions=["t"])


def names(ablation: Ablation) -> list[str]:
    return [row.name for row in ablation.rows()]


def test_rows_are_the_product() -> None:
    every = Ablation(conditions=["t+c", "t", "c"]).rows()
    assert len(every) == (6 + 2) * (1 + 2 * 2 * 5)
    assert len({row.name for row in every}) == len(every)
    assert len({(r.modulation, r.discard, r.pick, r.condition) for r in every}) == len(every)
    few = Ablation(["adaln"], discards=["pre_norm"], counts=[0, 2], seeds=[0, 1], conditions=["c"])
    assert names(few) == [
        "adaln", "adaln+pre_top2", "adaln+pre_random2.0", "adaln+pre_random2.1",
        "adaln(c)", "adaln(c)+pre_top2", "adaln(c)+pre_random2.0", "adaln(c)+pre_random2.1",
    ]  # fmt: skip
    by_name = {row.name: row for row in SMALL.rows()}
    row = by_name["whiten+post_random4.3"]
    assert (row.modulation, row.discard, row.pick) == ("whiten", "post_adaln", ChannelPick(4, "random", 3))
    assert by_name["adaln(t)"].condition == "t"
    assert [by_name["raw"], by_name["whiten"]] == chosen_rows(["raw", "whiten"]), "known rows keep their names"


def test_the_condition_of_the_features_is_the_first() -> None:
    rows = Ablation(modulations=["adaln"], discards=[], conditions=["t", "t+c"]).rows("t")
    assert [(row.name, row.condition) for row in rows] == [("adaln", None), ("adaln(t+c)", "t+c")]


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"modulations": []}, "ablation.modulations"),
        ({"modulations": ["adaln", "adaln"]}, "ablation.modulations"),
        ({"modulations": ["film"]}, "ablation.modulations"),
        ({"discards": ["none"]}, "ablation.discards"),
        ({"discards": ["before"]}, "ablation.discards"),
        ({"counts": [2, 2]}, "ablation.counts"),
        ({"counts": [-1]}, "massive_count"),
        ({"choices": ["weak"]}, "ablation.choices"),
        ({"seeds": []}, "ablation.seeds"),
        ({"conditions": ["x"]}, "ablation.conditions"),
    ],
)
def test_what_cannot_be_combined(change: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        Ablation(**change).rows()
    assert caught.value.argument == argument


@pytest.fixture(scope="module")
def run(
    features: BackboneFeatures,
    make_pairs: Callable[[], PairDataModule],
    make_trainer: Make,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[AblationTask, Path]:
    """What several tests look at."""
    run_dir = tmp_path_factory.mktemp("run")
    task = AblationTask(features, SMALL, rows=["same_position", "adaln+debias", "whiten"], run_dir=str(run_dir))
    make_trainer(run_dir).test(task, make_pairs(), verbose=False)
    return task, run_dir


def test_one_pass_for_each_condition(run: tuple[AblationTask, Path]) -> None:
    task, _ = run
    streams = streams_of(task.matchers)
    assert [stream.extractor.modulation_condition for stream in streams] == ["t+c", "t"]
    rows = [row.name for row in task.result().datasets[0].rows]
    assert rows == ["adaln+debias", *names(SMALL), "same_position"]
    assert task.result().settings["ablation"] == names(SMALL)
    kept = [matcher._kept.budget for matcher in task.matchers if isinstance(matcher, FeatureMatcher)]
    assert len(kept) == len(names(SMALL)) + 1
    assert 0 < sum(kept) <= PREPARED_BYTES


def predictions(result: RunResult, name: str) -> list[np.ndarray]:
    (row,) = (row for row in result.datasets[0].rows if row.name == name)
    return [row.predictions.x, row.predictions.y, row.predictions.similarity]


def test_rows_are_those_of_a_comparison_of_single_features(
    run: tuple[AblationTask, Path], features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    """Each as further features of a plain comparison, with the settings that configurations have."""
    chosen = [
        "raw+post_top4", "raw+pre_random1.3", "whiten", "whiten+pre_top4", "whiten+post_random4.3",
        "adaln+pre_random1.3", "adaln(t)", "adaln(t)+post_top1",
    ]  # fmt: skip
    by_name = {row.name: row for row in SMALL.rows()}
    others = {}
    for row in (by_name[name] for name in chosen):
        pick = row.pick or ChannelPick()
        others[f"again {row.name}"] = replace(
            features,
            modulation=row.modulation,
            discard=row.discard,
            massive_count=pick.count,
            channel_choice=pick.kind,
            channel_seed=pick.seed,
            modulation_condition=row.condition or "t+c",
        )
    task = CorrespondenceTask(features, ["adaln"], others=others, run_dir=str(tmp_path / "plain"))
    trainer().test(task, pairs, verbose=False)
    assert len(streams_of(task.matchers)) == 2, "they share passes too"
    for name in chosen:
        for a, b in zip(predictions(run[0].result(), name), predictions(task.result(), f"again {name}"), strict=True):
            np.testing.assert_array_equal(a, b)
    record = task.settings()["rows"]["again whiten+post_random4.3"]
    assert record["discarded"] == run[0].settings()["rows"]["whiten+post_random4.3"]["discarded"]
    assert len(record["discarded"]["1"]) == 4


def test_what_is_recorded(run: tuple[AblationTask, Path]) -> None:
    task, _ = run
    rows = task.settings()["rows"]
    strongest = rows["adaln+post_top4"]["discarded"]["1"]
    assert rows["raw+pre_top4"]["discarded"]["1"] == strongest
    drawn = rows["adaln+post_random4.3"]["discarded"]["1"]
    assert len(set(drawn)) == 4
    assert not set(drawn) & set(strongest)
    assert "discarded" not in rows["adaln"]
    notes = {row.name: row.notes for row in task.result().datasets[0].rows}
    assert notes["adaln+post_random4.3"] == ("4 random channels",)
    assert notes["adaln+post_top1"] == ("1 channel",)


def test_files_of_an_ablation(run: tuple[AblationTask, Path], capsys: pytest.CaptureFixture[str]) -> None:
    task, run_dir = run
    comparison = report(task.result(), run_dir)
    schema = json.loads((Path(ditf_probe.__file__).parent / "comparison.schema.json").read_text())
    jsonschema.validate(comparison, schema)
    with (run_dir / "ablation.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == 2 * names(SMALL)
    scores = {row["name"]: row for row in comparison["datasets"]["warped"]["rows"]}
    for line in lines[len(lines) // 2 :]:
        row = scores[line["row"]]
        assert line["dataset"] == "warped"
        assert float(line["@0.10"]) == row["pck"]["per_point"]["0.10"]
        assert float(line["delta"]) == row["delta"]["value"]
        assert len(line["channels"].split()) == int(line["count"])
    cells = {cell.row: cell for cell in ablation_cells(comparison, "synthetic")}
    assert (cells["adaln(t)+pre_top4"].line, cells["adaln(t)+pre_top4"].count) == (
        ("adaln(t)", "pre_norm", "massive", 0),
        4,
    )
    assert cells["adaln"].delta == 0
    printed = capsys.readouterr().out
    assert "adaln(t)" in printed
    assert "random, seed 3" in printed
    assert "KAP" not in printed, "one table for each data set"
    pictures = [run_dir / "pictures" / f"{name}-ablation.png" for name in ("synthetic", "warped")]
    assert all(np.asarray(Image.open(picture)).std() > 5 for picture in pictures)
    kept = (run_dir / "ablation.csv").read_bytes()
    (run_dir / "ablation.csv").unlink()
    pictures[0].unlink()
    report_from_predictions(run_dir)
    assert (run_dir / "ablation.csv").read_bytes() == kept
    assert pictures[0].is_file()


def test_refusals(features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="massive_channels"):
        AblationTask(replace(features, massive_channels=[1]), SMALL)
    with pytest.raises(InputError, match="massive_count"):
        trainer().test(AblationTask(features, replace(SMALL, counts=[17]), run_dir=str(tmp_path)), pairs)
    with pytest.raises(InputError, match=r"massive_count.*use 0 to 7"):
        trainer().test(AblationTask(features, replace(SMALL, counts=[9]), run_dir=str(tmp_path)), pairs)


def test_new_rows_are_no_default() -> None:
    assert {"rms_norm", "standardise", "whiten"}.isdisjoint(ROW_NAMES)
    (row,) = chosen_rows(["whiten"])
    assert row.needs_calibration
    assert not chosen_rows(["rms_norm"])[0].needs_calibration
    assert asdict(row)["modulation"] == "whiten"


def test_the_command(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The configuration of the experiment, smaller, over a store: the second time no image is computed."""
    init, test = "--model.init_args", "--data.init_args"
    words = [
        "test", "--config", str(CONFIGS / "experiments" / "ablation.yaml"), "--run_dir", str(tmp_path / "run"),
        f"{init}.features.backbone", str(weights), f"{init}.features.blocks", "[1]",
        f"{init}.features.image_size", "32", f"{init}.features.store", str(tmp_path / "store"),
        f"{init}.ablation.counts", "[2]", f"{init}.ablation.modulations", "[whiten, adaln]",
        f"{init}.ablation.conditions", "[]",
        f"{test}.calibration.init_args.num_pairs", "4", f"{test}.test.synthetic.init_args.num_pairs", "6",
        "--trainer.callbacks", "[]",
    ]  # fmt: skip
    evaluate(words)
    first = (tmp_path / "run" / "ablation.csv").read_bytes()
    evaluate([*words, f"{init}.features.store_only", "true"])
    assert (tmp_path / "run" / "ablation.csv").read_bytes() == first
    assert "whiten" in capsys.readouterr().out
    tags = set()
    for path in (tmp_path / "run" / "tensorboard").rglob("events*"):
        tags |= set(EventAccumulator(str(path)).Reload().Tags()["images"])
    assert "synthetic/ablation" in tags


def test_a_probe_on_whitened_features(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    """Trained on what calibration fits, and compared with those features beside rows of others."""
    chosen = {"modulation": "whiten", "discard": "pre_norm", "massive_count": 3, "whiten_shrinkage": 0.2}
    probes = {"linear": lambda channels, blocks: LinearProbe(channels, blocks, width=8)}
    task = ProbeTask(replace(features, **chosen), probes=probes, run_dir=str(tmp_path / "run"))
    trainer(max_epochs=1).fit(task, pairs)
    test = CorrespondenceTask(
        features,
        ["adaln", "whiten", "same_position"],
        [str(tmp_path / "run" / "probes" / "linear")],
        run_dir=str(tmp_path / "test"),
    )
    trainer().test(test, pairs, verbose=False)
    settings = test.settings()
    probe, white = settings["rows"]["linear"], settings["rows"]["whiten"]
    assert len(probe["discarded"]["1"]) == 3
    shrinkage = [settings["models"][row["model"]]["whiten_shrinkage"] for row in (probe, white)]
    assert shrinkage == [0.2, 0.1]
    assert {row.name: row.notes for row in test.result().datasets[0].rows}["linear"] == ("3 channels",)


def test_debiased_rows_of_other_channels_have_a_calibration_of_their_own(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    def other(count: int, debias: str) -> BackboneFeatures:
        return replace(features, discard="pre_norm", massive_count=count, position_debias=debias)

    others = {f"{debias}{count}": other(count, debias) for debias in ("none", "mean") for count in (1, 4)}
    task = CorrespondenceTask(features, ["adaln"], others=others, run_dir=str(tmp_path))
    trainer().test(task, pairs, verbose=False)
    settings = task.settings()
    models = [settings["rows"][name]["model"] for name in ("adaln", "none1", "none4", "mean1", "mean4")]
    assert models == [0, 0, 0, 1, 2]
    for model, count in ((1, 1), (2, 4)):
        assert len(settings["models"][model]["massive_channels"]["1"]) == count
