"""What a search says of its estimate is what the study found."""

import json

import pytest

from lownas.experiments.tabular.table import TABLE
from lownas.search.objective import FIDELITY

STUDY = TABLE.parents[1] / "proxy_fidelity" / "study.json"


def test_the_fidelity_that_a_search_states_is_the_study_s() -> None:
    study = json.loads(STUDY.read_text())
    all_long = study["against long training"]["all"]
    found = {
        "long": all_long["surrogate, from all short trainings of one seed, for a longer training"]["tau"][0],
        "MACs, long": all_long["MACs"]["tau"][0],
        "another seed": study["surrogate, the networks' own trainings included, by accuracy and loss"][0],
    }
    assert pytest.approx(found, abs=0.0051) == FIDELITY
