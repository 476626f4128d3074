"""Which runs a sweep has, and what they are called."""

import itertools

import pytest

from ditf_probe.errors import InputError
from ditf_probe.sweeping.grid import grid, run_name, short_keys, split_values


def test_every_combination_the_last_key_fastest() -> None:
    runs = grid(["a.rate=1e-3,3e-3", "seed=0,1,2"])
    assert runs == [{"a.rate": rate, "seed": seed} for rate, seed in itertools.product(("1e-3", "3e-3"), "012")]
    assert grid(["a=1"]) == [{"a": "1"}]


def test_zipped_keys_go_together() -> None:
    assert grid(["a=1,2", "b=x,y"], zipped=True) == [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
    with pytest.raises(InputError, match=r"--zip.*a 2, b 1.*same number"):
        grid(["a=1,2", "b=x"], zipped=True)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["1", "2"]),
        ("[1],[2,3]", ["[1]", "[2,3]"]),
        ("{a: [1, 2], b: 3},null", ["{a: [1, 2], b: 3}", "null"]),
        ("'a,b',\"c,[\", d", ["'a,b'", '"c,["', "d"]),
        ("a(1,2)", ["a(1,2)"]),
        ("", [""]),
    ],
)
def test_commas_within_brackets_and_quotes_do_not_separate(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["rate"], "KEY=VALUE"),
        (["=1"], "KEY=VALUE"),
        (["a b=1"], "KEY=VALUE"),
        (["a="], "null for none"),
        (["a=1,,2"], "null for none"),
        (["a=1,1"], "each value once"),
        (["a=[1,2", "b=1"], r"a=\[1,2.*, \] is missing"),
        (["a={b: [1,2},3"], r"brackets and quotes, \]} is missing"),
        (["a='x,y"], "brackets and quotes, ' is missing"),
        (['a=["x],y'], 'brackets and quotes, " is missing'),
        (["run_dir=x"], "sweep itself sets run_dir"),
        (["a=1", "a=2"], "each key once"),
    ],
)
def test_bad_overrides_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(InputError, match=f"--over.*{words}"):
        grid(texts)


def test_names_are_short_and_belong_to_their_overrides() -> None:
    assert run_name({"seed": "1", "a.rate": "1e-3"}) == "rate=1e-3,seed=1" == run_name({"a.rate": "1e-3", "seed": "1"})
    assert short_keys(["a.b.rate", "seed", "x.y", "z.y"]) == {
        "a.b.rate": "rate",
        "seed": "seed",
        "x.y": "x.y",
        "z.y": "z.y",
    }
    alike = [{"rate": "1"}, {"x": "[1]"}, {"x": "(1)"}, {"x": "y" * 200}]
    alike += [{"x": "y" * 201}, {"a.x": "1", "b.x": "2"}]
    names = [run_name(overrides) for overrides in alike]
    assert len(set(names)) == len(names)
    assert all(len(name) < 100 and "/" not in name and "[" not in name for name in names)
    assert names == [run_name(overrides) for overrides in alike]
