"""Commands that the documentation shows have options that are there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import run as torchrun

from ditf_probe import cli
from ditf_probe.commands.main import _parser as command_line
from ditf_probe.experiments.plans import PLANS

ROOT = Path(__file__).parents[1]


def commands(page: str, program: str) -> list[list[str]]:
    """Command lines of a page that run `program`, from its name on, without what launches it and without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.replace("\\\n", "").splitlines()]
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


def test_experiments_of_the_page_are_those_of_the_command() -> None:
    shown = commands("experiments.md", "ditf-probe")
    for words in shown:
        command_line().parse_args(words[1:])
    assert {words[2] for words in shown} == set(PLANS)
