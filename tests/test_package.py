"""The package loads lazily, and every public name is really there."""

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import ditf_probe


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_is_lazy() -> None:
    assert not {"torch", "lightning", "diffusers", "matplotlib"} & modules_after("import ditf_probe")


def test_trained_probes_need_neither_lightning_nor_metrics() -> None:
    loaded = modules_after("from ditf_probe import ProbedBackbone, load_features")
    assert "torch" in loaded
    assert not {"lightning", "torchmetrics", "torchvision", "transformers", "diffusers"} & loaded


def test_help_of_the_command_needs_no_lightning() -> None:
    code = "from ditf_probe.commands import main\ntry: main(['--help'])\nexcept SystemExit as end: assert end.code == 0"
    assert not {"torch", "lightning", "diffusers"} & modules_after(code)


def test_diffusers_is_imported_where_it_is_used_only() -> None:
    """The scripts then start as fast as Lightning does."""
    for file in Path(ditf_probe.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "diffusers" for name in names), file


def test_every_public_name_resolves() -> None:
    for name in ditf_probe.__all__:
        assert getattr(ditf_probe, name) is not None


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(ditf_probe.__file__).read_text())
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(ditf_probe.__all__) - {"__version__"} == typed - {None}


def test_unknown_name_raises() -> None:
    assert not hasattr(ditf_probe, "no_such_name")


def test_entry_scripts_are_three_lines() -> None:
    for name in ("train.py", "eval.py"):
        tree = ast.parse((Path(__file__).parents[1] / name).read_text())
        assert len(tree.body[1:]) == 2


SCRIPTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_installed_commands_start(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, function = SCRIPTS[script].split(":")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        getattr(import_module(module), function)()
    assert end.value.code == 0
    assert script in capsys.readouterr().out
