"""What a search says of its estimate is what the study found."""

import json

import pytest

from lownas.experiments.tabular.table import TABLE
from lownas.search.objectives.data_accuracy import FIDELITY

STUDY = TABLE.parents[1] / "proxy_fidelity" / "study.json"


def test_the_fidelity_that_a_search_states_is_the_study_s() -> None:
    study = json.loads(STUDY.read_text())
    all_long = study["against long training"]["all"]
    found = {
        "estimate": all_long["surrogate, from all short trainings of one seed, for a longer training"]["tau"][0],
        "own": all_long["short training, one seed, 9 of 9 epochs"]["tau"][0],
        "MACs": all_long["MACs"]["tau"][0],
    }
    assert pytest.approx(found, abs=0.0051) == FIDELITY
