"""The settings of a search: read, checked, and given by people."""

from pathlib import Path

import pytest

from lownas.search.settings import SearchSettings, options, options_page, read_options


def test_settings_name_what_is_wrong(settings) -> None:
    with pytest.raises(ValueError, match=r"latency_budget_ms: .* \(given: -1\.0\)"):
        settings(latency_budget_ms=-1.0)
    with pytest.raises(ValueError, match="epoch: unknown key"):
        settings(epoch=3)
    with pytest.raises(ValueError, match="confidence"):
        settings(confidence=1.0)
    assert SearchSettings.from_dict(settings().to_dict()) == settings()


def test_settings_as_people_give_them() -> None:
    given = {"latency_budget": "800us", "max_params": "5M", "max_memory": "50MB", "time_budget": "2h", "trials": 3}
    assert read_options(given) == {
        "latency_budget_ms": 0.8,
        "max_params": 5e6,
        "max_memory_bytes": 5e7,
        "time_budget_s": 7200,
        "trials": 3,
    }
    assert read_options({"also": ["cpu=20ms"]}) == read_options({"also": {"cpu": "20ms"}}) == {"also": {"cpu": 20}}
    with pytest.raises(ValueError, match=r"unknown setting 'trails': did you mean trials"):
        read_options({"trails": 3})
    with pytest.raises(ValueError, match="--latency-budget: a positive duration"):
        read_options({"latency_budget": "2 apples"})


def test_every_option_has_a_help_and_a_field() -> None:
    for name, (field, _, option) in options().items():
        assert field in SearchSettings.model_fields and field.startswith(name)
        assert option.help.endswith((".", "...")) and len(option.help) > 10


def test_the_page_of_options_is_as_the_settings_are() -> None:
    page = Path(__file__).parents[2] / "docs" / "options.md"
    assert page.read_text() == options_page(), "write it anew with lownas.search.settings.options_page()"
