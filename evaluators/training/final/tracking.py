"""Metrics of a training, epoch by epoch, for those who look at them in TensorBoard or MLflow.

A tracker only watches: what goes wrong with it is said once, and the training goes on without it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger("lownas.evaluators")

EXPERIMENT = "lownas"
"""The name of the MLflow experiment that trainings are runs of."""
_LONGEST_VALUE = 6000  # characters of a parameter that MLflow takes
_FOLDER_TAG = "lownas.folder"


class Tracker(Protocol):
    """Where the metrics of a training go.

    To write another one, name it in `TRACKERS`.
    """

    def log(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Takes the metrics of an epoch, counted from 1; what is no finite number is left out."""
        ...

    def close(self) -> None:
        """Ends it. May be called twice."""
        ...


def open_trackers(names: Sequence[str], folder: str | Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """Opens the trackers of these names for a training that lives in `folder`.

    TensorBoard's files are in `folder`/tensorboard. MLflow's runs go to the server that MLFLOW_TRACKING_URI names, else
    to `folder`/mlflow.db (`mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows them). A training that is
    gone on with goes on in the same run.

    Args:
        settings: of the training, told to the trackers as JSON values.

    Raises:
        ValueError: an unknown name, a package that is missing, or a tracker that cannot be opened; one line.
    """
    check_trackers(names)
    opened: list[Tracker] = []
    for name in dict.fromkeys(names):
        try:
            opened.append(_Safe(name, TRACKERS[name](Path(folder).absolute(), settings)))
        except Exception as error:  # trackers' own exceptions share no narrower base class than this
            for each in opened:
                each.close()
            raise ValueError(f"--track {name}: {_line(error)}") from None
    return opened


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError, in one line, for an unknown tracker or one whose package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--track {name}: unknown; allowed are {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--track {name}: {name} is not installed: pip install 'lownas[track]'")


class _Safe:
    """A tracker that a training does not fail by."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker

    def log(self, epoch: int, values: Mapping[str, Any]) -> None:
        self._call(lambda tracker: tracker.log(epoch, numbers(values)))

    def close(self) -> None:
        self._call(lambda tracker: tracker.close())
        self._tracker = None

    def _call(self, what: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            what(self._tracker)
        except Exception as error:  # as above
            logger.warning("--track %s: nothing more is told to it: %s", self._name, _line(error))
            self._tracker = None


class _TensorBoard:
    """Event files. The writer comes with the first epoch, after which what was written before, if any, is not shown."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils import tensorboard

        self._folder, self._settings = folder / "tensorboard", settings
        self._make: Any = tensorboard.SummaryWriter  # type: ignore[attr-defined]
        self._writer: Any = None
        self._folder.mkdir(parents=True, exist_ok=True)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=epoch)
            self._writer.add_text("settings", f"```\n{json.dumps(dict(self._settings), indent=2)}\n```", epoch)
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Mlflow:
    """A run of an MLflow server, or of a database in the training's folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        # Nothing is told to its makers, and a server that does not answer is given up within seconds.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{folder}/mlflow.db"
        self._client: Any = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        self._run: str = self._unfinished(experiment, folder) or self._new(experiment, folder, settings)
        self._over = False

    def _unfinished(self, experiment: str, folder: Path) -> str | None:
        runs = self._client.search_runs([experiment], f"tags.`{_FOLDER_TAG}` = '{_quoted(folder)}'")
        return next((run.info.run_id for run in runs if run.info.status != "FINISHED"), None)

    def _new(self, experiment: str, folder: Path, settings: Mapping[str, Any]) -> str:
        run = self._client.create_run(experiment, tags={_FOLDER_TAG: _quoted(folder)}, run_name=folder.name)
        for name, value in settings.items():
            text = value if isinstance(value, str) else json.dumps(value)
            self._client.log_param(run.info.run_id, name, text[:_LONGEST_VALUE])
        run_id: str = run.info.run_id
        return run_id

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=epoch)

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._client.set_terminated(self._run)


TRACKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"tensorboard": _TensorBoard, "mlflow": _Mlflow}
"""By the name of the package that each needs."""


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the values, but for the epoch itself."""
    return {
        name: float(value)
        for name, value in values.items()
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _quoted(folder: Path) -> str:
    """As MLflow's filters take it."""
    return str(folder).replace("'", "_")


def _line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.300}" or type(error).__name__
