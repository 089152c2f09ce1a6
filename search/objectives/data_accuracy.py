"""The objective with the user's data: the accuracy on it, estimated from short trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...search_space.config import LowFormerConfig
from ..trials.history import History
from .base import Objective
from .estimates import Estimates, TrainedCandidate

# Kendall's tau with a long training: of the estimate on a user's data, of the short training's own accuracy, of MACs.
# Source: experiments/proxy_fidelity/study.json (Fashion-MNIST, the space "tiny").
FIDELITY = {"estimate": 0.56, "own": 0.45, "MACs": 0.46}


class DataAccuracy(Objective):
    """Accuracy of proxy trainings on the user's data, as a surrogate of all trainings of the run estimates it.

    Until enough is trained for a surrogate, it is the mean over a candidate's own trainings.
    """

    name = "accuracy"
    label = "accuracy %, estimated"
    axis = "proxy accuracy, estimated (%)"
    learns = True
    default_strategy = "surrogate"

    def estimates_of(
        self, trained: Sequence[TrainedCandidate], learned: Mapping[str, float] | None = None
    ) -> Estimates:
        known = learned or {}
        values = {one.config_id: 100 * known.get(one.config_id, one.accuracy) for one in trained}
        return Estimates(trained, values, learned=learned is not None)

    def value_at_first_rung(self, config: LowFormerConfig, accuracy: float) -> float:
        return 100 * accuracy

    def notes(self, history: History, estimates: Estimates) -> list[str]:
        notes = ["Accuracies are of short proxy trainings on the data given."]
        noise = estimates.agreement.noise
        between = f", which between seeds differs by {100 * noise:.2g} points (standard deviation)" if noise else ""
        if estimates.learned:
            notes.append(
                "Candidates are ranked by what all trainings together let expect of each, those of similar candidates "
                f"too, after a longer training, from which larger ones gain more; not by its own short one{between}."
            )
            notes.append(
                "How far this can be trusted, on Fashion-MNIST in the space 'tiny': its Kendall's tau with a training "
                f"seven times as long is {FIDELITY['estimate']:.2f}, that of the short training's own accuracy "
                f"{FIDELITY['own']:.2f}, that of MACs {FIDELITY['MACs']:.2f}."
            )
        if pruned := history.statuses["pruned"]:
            notes.append(f"Stopped early, at rungs: {pruned} of {pruned + len(estimates.trained)} candidates.")
        return notes
