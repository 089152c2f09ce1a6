"""The objective with the user's data: the accuracy on it, estimated from short trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ..trials.candidate import Candidate
from ..trials.history import History
from .base import Objective
from .estimates import Estimates, TrainedCandidate
from .run_surrogate import RunSurrogate

# Kendall's tau with a long training: of the estimate on a user's data, of the short training's own accuracy, of MACs.
# Source: experiments/proxy_fidelity/study.json (Fashion-MNIST, the space "tiny").
FIDELITY = {"estimate": 0.56, "own": 0.45, "MACs": 0.46}


class DataAccuracy(Objective):
    """Accuracy of proxy trainings on the user's data, as a surrogate of all trainings of the run estimates it.

    Until enough is trained for a surrogate, it is the mean over a candidate's own trainings.
    """

    name = "accuracy"
    learns = True
    default_strategy = "surrogate"

    def estimates_of(
        self, trained: Sequence[TrainedCandidate], learned: Mapping[str, float] | None = None
    ) -> Estimates:
        known = learned or {}
        values = {one.config_id: 100 * known.get(one.config_id, one.accuracy) for one in trained}
        return Estimates(trained, values, learned=learned is not None)

    def at_rung(
        self, configs: Sequence[LowFormerConfig], accuracies: NDArray[np.float64], surrogate: RunSurrogate
    ) -> NDArray[np.float64]:
        """(n,) the surrogate's estimates, once there are enough trainings for one; until then the accuracies there."""
        logits = surrogate.logits(configs)
        return accuracies if logits is None else logits

    @property
    def label(self) -> str:  # type: ignore[override]
        """Of its values in tables: accuracy, or of another task the score that stands for its metric."""
        name = self.metric.name
        return "accuracy %, estimated" if name == "accuracy" else f"score of the {name} %, estimated"

    @property
    def axis(self) -> str:  # type: ignore[override]
        """Of its values in figures."""
        return f"proxy {self.label.replace(' %, estimated', '')}, estimated (%)"

    def notes_on_answer(self, answer: Candidate) -> list[str]:
        if self.metric.name == "accuracy" or answer.accuracy is None:
            return []
        value = f"{self.metric.from_score(answer.accuracy):.4g} {self.metric.unit}".strip()
        return [f"The short trainings of the answer reached a {self.metric.name} of {value}."]

    def notes(self, history: History, estimates: Estimates) -> list[str]:
        notes = ["Accuracies are those of short proxy trainings on your data."]
        if estimates.learned:
            notes.append(
                "Candidates are ranked by an estimate of their accuracy after a longer training, learned from all "
                "trainings together: similar candidates inform each other, and longer training helps larger ones more."
            )
            notes.append(
                "How far the estimate can be trusted, on Fashion-MNIST in the space 'tiny': its rank correlation "
                f"(Kendall's tau) with trainings seven times as long is {FIDELITY['estimate']:.2f}, that of the short "
                f"trainings' own accuracies {FIDELITY['own']:.2f}, that of MACs {FIDELITY['MACs']:.2f}."
            )
        if noise := estimates.agreement.noise:
            notes.append(
                f"Two short trainings of one candidate, with different seeds, differ by {100 * noise:.2g} points "
                "(standard deviation)."
            )
        if pruned := history.statuses["pruned"]:
            notes.append(f"{pruned} of {pruned + len(estimates.trained)} candidates were stopped early, at a rung.")
        return notes
