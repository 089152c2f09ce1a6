"""Durations and amounts as people write them."""

import pytest

from lownas.search.quantities import duration_text, parse_duration, parse_percentage, parse_quantity


@pytest.mark.parametrize(
    ("text", "seconds"), [("2ms", 2e-3), ("800us", 8e-4), ("0.5s", 0.5), ("10m", 600), ("1.5 h", 5400), (" 3s ", 3)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "--x") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["2 apples", "-1ms", "0ms", "", "ms", "2", "1e400s", "nan s", "2ms3"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="--x: a positive duration"):
        parse_duration(text, "--x")


def test_durations_as_a_person_says_them() -> None:
    assert [duration_text(s) for s in (40, 200, 9000)] == ["40 s", "3 min", "2.5 h"]


def test_percentages_and_amounts() -> None:
    assert parse_percentage("2.5%", "--x") == pytest.approx(0.025)
    assert [parse_quantity(text, "--x") for text in ("600M", "1.5G", "5k")] == [6e8, 1.5e9, 5e3]
    assert parse_quantity("50MB", "--x", "B") == 5e7
    for wrong in ("0%", "100%", "3"):
        with pytest.raises(ValueError, match="--x: between 0% and 100%"):
            parse_percentage(wrong, "--x")
    with pytest.raises(ValueError, match=r"--x: a positive number such as 600kB"):
        parse_quantity("50M", "--x", "B")
