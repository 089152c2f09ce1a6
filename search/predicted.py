"""The search where nothing trains: the best predicted networks become the run's records and candidates."""

from __future__ import annotations

from ..search_space.config import LowFormerConfig
from ..search_space.graph.from_config import op_graph
from .latency.tracker import LatencyTracker
from .loop import Callback
from .objectives.goal import evenly
from .settings import SearchSettings
from .strategies.base import SearchState
from .trials.records import EvaluationResult, Proposal, Role
from .trials.run_folder import RunFolder
from .trials.status import Reporter

EXPLORE = 3  # one in so many networks is from the front below the budget


class PredictedNetworks:
    """Keeps the best predicted networks of a run, each as a line of results.jsonl with the status "predicted".

    No Optuna study is made, as its trials are trainings. Which network comes next depends on those before it alone, so
    that a run that is resumed with more `trials` keeps the same ones as if it had begun with so many.
    """

    def __init__(
        self,
        settings: SearchSettings,
        run: RunFolder,
        state: SearchState,
        latency: LatencyTracker,
        report: Reporter,
        callback: Callback | None = None,
    ) -> None:
        self.settings, self.run, self.state, self.latency = settings, run, state, latency
        self._report, self._callback = report, callback

    def keep(self) -> bool:
        """Adds networks until there are `settings.trials` of them; whether the callback has ended it before."""
        history = self.state.history
        history.load(self.run.load_results(), ())
        while len(history.results) < self.settings.trials:
            number = max(history.results, default=-1) + 1
            if (proposal := self.next(number)) is None:
                return False
            result = self._described(number, proposal)
            self.run.append_result(result)
            history.add_result(result)
            self._report("propose", history.results.values())
            if self._callback is not None and self._callback(result):
                return True
        return False

    def next(self, number: int) -> Proposal | None:
        """The network to keep as number `number`; None if none is left.

        First the best by what is maximized, then the most different ones about as good ("exploit"). Every third one is
        the best of those that take a smaller part of the budget ("explore"). Where a front is wanted, all are from it.
        """
        pool, tried = self.state.pool, self.state.history.tried
        if pool.nothing_fits:
            return None
        if number == 0:
            return _proposal(pool.found.best_left(tried), "exploit")
        goal = self.state.objective.goal
        if goal.front or number % EXPLORE != EXPLORE - 1:
            chosen = self.state.history.proposed_for_budget()
            return _proposal(goal.exploiting(pool, tried, chosen), "exploit")
        # Without the ends, 1 and 0: the budget itself has the others, and nobody asked for the fastest network.
        return _proposal(pool.found.best_within(evenly(2 + number // EXPLORE), tried), "explore")

    def _described(self, number: int, proposal: Proposal) -> EvaluationResult:
        config, objective = proposal.config, self.state.objective
        cost, graph = self.latency.cost(config), op_graph(config)
        details = objective.details(config)
        if self.latency.limits:
            details["limits"] = {name: round(share, 4) for name, share in self.latency.limits.excess(config).items()}
        result = EvaluationResult(
            trial=number,
            status="predicted",
            role=proposal.role,
            config=config,
            config_id=config.id,
            seed=proposal.seed,
            prior_top1=float(objective.prior.imagenet_top1([config])[0]),
            objective=float(objective.before_training([config])[0]),
            **self.latency.known_latency(config, cost),
            quantile_ms=cost.quantile_ms,
            macs=graph.macs,
            params=graph.params,
            details=details,
        )
        self.run.log.info(
            "network %d %s %s predicted: top-1 %.2f, objective %.2f, %.3f ms (quantile %.3f)",
            number,
            result.role,
            result.config_id,
            result.prior_top1,
            result.objective,
            result.latency_ms,
            result.quantile_ms,
        )
        return result


def _proposal(config: LowFormerConfig | None, role: Role) -> Proposal | None:
    return None if config is None else Proposal(config, role, seed=0)
