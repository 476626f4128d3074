"""Documentation that is made from the code is in step with it."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import run as torchrun

from ditf_probe import cli
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


def commands(page: str, program: str) -> list[list[str]]:
    """Command lines of a page that run `program`, from its name on, without what launches it and without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words[words.index(program) :] for words in lines if program in words]


@pytest.fixture(scope="module")
def parsers() -> dict[str, Any]:
    """The parsers of `train.py` and `eval.py`; what they would build is not built."""
    found: dict[str, Any] = {}
    for name, kind in (("train.py", cli.TrainCLI), ("eval.py", cli.EvaluateCLI)):

        class Parsers(kind):  # type: ignore[misc, valid-type]
            def parse_arguments(self, parser: Any, args: Any, name: str = name) -> None:
                found[name] = parser
                raise InterruptedError

        with pytest.raises(InterruptedError):
            cli._run(Parsers, [])
    return found


@pytest.mark.parametrize("page", ["scaling.md", "store.md"])
def test_commands_parse(page: str, parsers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = [words for program in parsers for words in commands(page, program)]
    assert len(shown) > 2
    for program, *words in shown:
        parsed = parsers[program].parse_args(words)
        if "--trainer.devices" in words:
            assert str(parsed[words[0]].trainer.devices) == words[words.index("--trainer.devices") + 1]
    for words in commands(page, "torchrun"):
        ranks, of_run = torchrun.get_args_parser().parse_args(words[1:]), " ".join(words)
        assert ranks.training_script == "eval.py"
        assert f"--trainer.devices {ranks.nproc_per_node} " in of_run, "Lightning wants to know what torchrun starts"
        assert ranks.nnodes == "1:1" or f"--trainer.num_nodes {ranks.nnodes} " in of_run


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
