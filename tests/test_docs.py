"""Documentation that is made from the code is in step with it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.families_table import BEGIN, END, families_table
from ditf_probe.commands import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "backbones.md"


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
