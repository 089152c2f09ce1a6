"""What a search concludes from its trials: the ranking, the answer, and what a reader must know of it."""

from __future__ import annotations

import time
from collections import Counter

from ..latency.finalists import measured_finalists, predicted_answer
from ..loop import Driver
from ..objectives.estimates import FIDELITY, Objective
from ..objectives.pareto import pareto_front
from ..strategies.base import USED, stream
from ..strategies.feasible import slowest
from .outcome import Candidate, SearchOutcome


def conclude(driver: Driver, *, interrupted: bool) -> SearchOutcome:
    """Ranks what was trained, measures finalists where possible, and chooses the answer."""
    settings, results = driver.settings, driver.journal.results
    objective = driver.proposer.objective()
    ranked = driver.proposer.ranked(objective)
    counts = Counter(result.status for result in results.values())
    if not ranked and counts["failed"] and not interrupted:
        failed = [result for result in results.values() if result.status == "failed"]
        raise RuntimeError(f"all {len(failed)} candidates failed; the first: {failed[0].reason}")
    seeds = Counter(result.config_id for result in driver.journal.complete() if not result.reason)
    extrapolated = driver.prior.extrapolates([result.config for result in ranked])
    candidates = [
        Candidate(
            trial=result.trial,
            config=result.config,
            objective=objective.value(result.config_id),
            accuracy=objective.observed[result.config_id].accuracy,
            prior_top1=float(result.prior_top1 or 0.0),
            extrapolated=bool(outside),
            latency_ms=result.latency_ms,
            low_ms=result.low_ms,
            high_ms=result.high_ms,
            latency_source="predicted",
            predicted_ms=result.latency_ms,
            quantile_ms=result.quantile_ms,
            macs=result.macs,
            params=result.params,
            seeds=seeds[result.config_id],
        )
        for result, outside in zip(ranked, extrapolated, strict=True)
    ]
    notes = _notes(driver, objective)
    before, factor = driver.predictor.measured, driver.predictor.factor
    if before:
        notes.append(
            f"{before} networks measured during the run corrected the latency predictor: what it says is taken "
            f"{factor:.3g} times."
        )
    if driver.proposer.nothing_fits:
        notes.append("By what was measured then, nothing in the space fits the budget: nothing more was proposed.")
    answer: Candidate | None = None
    concluded = False
    if candidates and driver.rounds.possible and not driver.cut_short:
        driver.report("measure", results.values())
        try:
            candidates, answer, remark = measured_finalists(candidates, driver.rounds, driver.predictor, settings)
            concluded = True
        except KeyboardInterrupt:
            interrupted = True
            notes.append("Measuring the finalists was interrupted.")
    if candidates and not concluded:
        candidates, answer, remark = predicted_answer(candidates, driver.rounds, driver.predictor, settings)
    if candidates:
        notes.append(remark)
    if settings.pareto and (front := pareto_front(candidates, settings.latency_budget_ms)):
        notes.append(
            f"The front has {len(front)} networks, from {front[0].latency_ms:.3g} to {front[-1].latency_ms:.3g} ms"
            + ("; the answer is the most accurate one." if answer == front[-1] else ".")
        )
    if answer is not None:
        share = answer.quantile_ms / settings.latency_budget_ms
        notes.append(
            f"The answer uses {100 * share:.0f} % of the budget, by the latency quantile held against it "
            f"(confidence {settings.confidence:g})."
        )
        for limit in driver.limits.limits:
            cost = float(limit.cost([answer.config])[0])
            notes.append(f"Its {limit.name}: {limit.said(cost)}, at most {limit.said(limit.most)} allowed.")
        if share < USED and not driver.limits and not settings.pareto:
            _, largest = slowest(
                driver.space, driver.predictor, stream(settings, "slowest"), confidence=settings.confidence
            )
            if largest <= settings.latency_budget_ms:
                notes.append(
                    f"Nothing in the space {driver.space.name!r} exceeds the budget: its slowest model takes "
                    f"{largest:.3g} ms."
                )
        if answer.extrapolated and settings.data is None:
            notes.append(
                "The answer lies outside the published models in size or resolution: its prior is extrapolated."
            )
    if interrupted:
        notes.append("The search was stopped before all its trials were done; --resume goes on.")
    return SearchOutcome(
        run=driver.run.path,
        settings=settings,
        answer=answer,
        candidates=tuple(sorted(candidates, key=lambda candidate: (-candidate.objective, candidate.trial))),
        reliability=objective.reliability,
        notes=tuple(notes),
        counts={str(status): count for status, count in counts.items()},
        interrupted=interrupted,
        seconds=time.monotonic() - driver.started,
    )


def _notes(driver: Driver, objective: Objective) -> list[str]:
    settings, results = driver.settings, driver.journal.results
    if settings.data is not None:
        notes = ["Accuracies are of short proxy trainings on the data given."]
        noise = objective.reliability.noise
        between = f", which between seeds differs by {100 * noise:.2g} points (standard deviation)" if noise else ""
        if objective.learned:
            notes.append(
                "Candidates are ranked by what all trainings together let expect of each, those of similar candidates "
                f"too, after a longer training, from which larger ones gain more; not by its own short one{between}."
            )
            notes.append(
                "How far this can be trusted, on Fashion-MNIST in the space 'tiny': its Kendall's tau with a training "
                f"seven times as long is {FIDELITY['estimate']:.2f}, that of the short training's own accuracy "
                f"{FIDELITY['own']:.2f}, that of MACs {FIDELITY['MACs']:.2f}."
            )
        if pruned := sum(result.status == "pruned" for result in results.values()):
            notes.append(f"Stopped early, at rungs: {pruned} of {pruned + len(objective.observed)} candidates.")
    else:
        notes = ["Nothing was trained on your data (--data): accuracy is estimated for ImageNet."]
        notes.append(objective.reliability.sentence())
    failed = [result for result in results.values() if result.status == "failed"]
    if failed:
        reasons = Counter(result.reason for result in failed).most_common(1)[0]
        notes.append(f"{len(failed)} trials failed; most often: {reasons[0]}")
    return notes
