"""How tables write numbers."""

from ditf_probe.comparison.table_parts import difference_text, interval_text, number_text


def test_numbers_intervals_and_differences() -> None:
    assert [number_text(12.34), number_text(None)] == ["12.3", ""]
    assert [interval_text([1.0, 2.26]), interval_text([-1.0, 2.0], "+"), interval_text(None)] == [
        *("1.0 to 2.3", "-1.0 to +2.0", "")
    ]
    assert difference_text(2.5, [-0.5, 5.5]) == "+2.5 (-0.5 to +5.5)"
    assert difference_text(-2.5, None) == "-2.5"
    assert difference_text(None, None) == ""
