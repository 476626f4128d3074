"""The page on heads is in step with the code."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import ditf_probe.probes
from ditf_probe.probes import LoraSettings, Probe

PAGE = (Path(__file__).parents[2] / "docs" / "heads.md").read_text()


def test_costs_are_those_that_the_example_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(code, "heads.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed in PAGE.replace("|---|---|---|\n", "")
    assert len(printed.splitlines()) == 9


def test_the_table_names_every_head_and_what_it_says_of_itself() -> None:
    known = {name for name in ditf_probe.probes.__all__ if _is_head(name)}
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*x.* \| .*) \|$", PAGE, flags=re.MULTILINE))
    assert set(rows) == known
    for name, row in rows.items():
        head = getattr(ditf_probe.probes, name)(*((16, [1], 2) if name == "TimestepAggregation" else (16, [1])))
        _, start, alone = row.split(" | ")
        assert start == ("yes" if head.starts_at_zero_shot else "no")
        assert alone.endswith("yes") == head.pointwise


def test_the_configuration_names_classes_that_are_there() -> None:
    heads, adapted = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    for text in (heads, adapted):
        arguments = yaml.safe_load(text)["model"]["init_args"]
        for given in arguments["probes"].values():
            kind = getattr(ditf_probe.probes, given["class_path"].rpartition(".")[2])
            assert isinstance(kind(16, [1, 2], **given.get("init_args", {})), Probe)
        assert set(arguments.get("probe_blocks", {})) <= set(arguments["probes"])
    # The page shows the defaults.
    found = LoraSettings(**arguments["lora"])
    assert replace(found, targets=tuple(found.targets)) == LoraSettings()


def _is_head(name: str) -> bool:
    found = getattr(ditf_probe.probes, name)
    return isinstance(found, type) and issubclass(found, Probe) and found is not Probe
