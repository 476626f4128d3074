"""Documentation that is made from the code is in step with it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule

from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.families_table import BEGIN, END, families_table
from ditf_probe.commands import main
from ditf_probe.configs_folder import CONFIGS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "backbones.md"
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_table_of_entries_is_in_step() -> None:
    shown = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()
    assert shown == families_table(), "run: ditf-probe families --write docs/backbones.md"
    assert set(re.findall(r"^\| `(\w+)`", shown, flags=re.MULTILINE)) == set(FAMILIES)


def test_table_is_replaced_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main(["families", "--write", str(page)])
    assert page.read_text() == f"before\n{BEGIN}\n{families_table()}\n{END}\nafter\n"
    (tmp_path / "empty.md").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["families", "--write", str(tmp_path / "empty.md")])
    assert end.value.code == 2
    assert "--write" in capsys.readouterr().err


def test_paths_that_the_documentation_names_exist() -> None:
    for page in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        for path in re.findall(
            r"`((?:backbones|features|tasks|metrics|probes|data|configs)/[\w/]+\.(?:py|yaml))`", page.read_text()
        ):
            found = (ROOT / path) if path.startswith("configs") else (ROOT / "ditf_probe" / path)
            assert found.is_file(), f"{page.name} names {path}"


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_example_of_training_is_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(CONFIGS)  # where the file of the backbone is looked for
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    built = parser.instantiate(parser.parse_string(text))
    assert built.model.plan.seeds == [0, 1, 2]
    assert built.model.optimisation.ema_decay == 0.99
    assert len(built.data.train) == 1600


def test_example_of_the_metrics_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "metrics.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "metrics.md", "exec"), names)
    arguments = [names[name] for name in ("predictions", "targets", "visible")]
    assert names["metric"].compute()["per_point"]["0.10"] == 100
    dagger = names["PercentageCorrectKeypoints"](alphas=(0.10,), dagger=True)
    base, index = torch.tensor([100.0]), torch.tensor([0])
    dagger.update(*arguments, base, index, ["face"], target_visible=names["visible"])
    assert dagger.compute()["per_point"]["0.10"] == 50
