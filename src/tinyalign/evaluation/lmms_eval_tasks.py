"""Any task of lmms-eval, run through its own API, with results in our form.

Prompts, answers' normalisation and metrics are lmms-eval's: its scores are comparable with others
of lmms-eval, and with those of `--benchmark` only where the rules agree (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from numbers import Real
from typing import Any, Protocol

import numpy as np

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.metrics.intervals import Interval, interval, per_item
from tinyalign.evaluation.results import Prediction


class LmmsModel(Protocol):
    """A model of lmms-eval that keeps what it answered."""

    batch_size: int
    predictions: dict[tuple[str, int], Prediction]


@dataclass(frozen=True)
class TaskRun:
    """What lmms-eval found."""

    metrics: dict[str, Interval]
    """Metrics that are means over samples, with intervals over images."""
    without_interval: dict[str, float]
    """Metrics that lmms-eval computes of all samples at once, such as F1."""
    predictions: list[Prediction]
    protocol: dict[str, Any]
    """How lmms-eval asked, for the results."""


def run_task(
    model: LmmsModel,
    task: str,
    *,
    include_path: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> TaskRun:
    """Run one task, or group of tasks, of lmms-eval on a model.

    include_path: a folder with task files (YAML) of your own. Raises EvaluationError without
    lmms-eval, and for a task that it does not know.
    """
    try:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager
    except ImportError as error:
        raise EvaluationError(
            f"lmms-eval cannot be imported ({error}); install it: pip install "
            "'tinyalign-vlm[lmms-eval]'"
        ) from error
    manager = TaskManager("ERROR", include_path=include_path, model_name="tinyalign")
    if task not in manager.all_tasks:
        where = f", nor {include_path}" if include_path else "; name your own with --include-path"
        raise EvaluationError(f"lmms-eval has no task {task!r}{where}.")
    found = simple_evaluate(
        model=model,
        tasks=[task],
        batch_size=model.batch_size,
        limit=limit,
        task_manager=manager,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    return _read(task, found, model.predictions, seed)


def _read(
    task: str,
    found: Mapping[str, Any],
    answered: Mapping[tuple[str, int], Prediction],
    seed: int,
) -> TaskRun:
    metrics: dict[str, Interval] = {}
    others: dict[str, float] = {}
    predictions: list[Prediction] = []
    for name, samples in found["samples"].items():
        images = [answered[name, sample["doc_id"]].image_id for sample in samples]
        values = _values(found["results"][name])
        prefix = "" if name == task else f"{name}/"
        for metric, value in values.items():
            each = _numbers(samples, metric)
            if each is not None and np.isclose(np.mean(each), value, rtol=1e-9, atol=1e-12):
                metrics[prefix + metric] = interval(per_item(each), images=images, seed=seed)
            else:
                others[prefix + metric] = value
        predictions += [_judged(answered, name, sample, values) for sample in samples]
    for name in found["results"].keys() - found["samples"].keys():  # groups of tasks
        prefix = "" if name == task else f"{name}/"
        others |= {prefix + k: v for k, v in _values(found["results"][name]).items()}
    protocol = {
        "name": "lmms-eval",
        "version": version("lmms-eval"),
        "rule": f"lmms-eval's own, of its task {task}",
        "tasks": {name: _asked(found["configs"].get(name, {})) for name in found["samples"]},
    }
    return TaskRun(metrics, others, predictions, protocol)


def _values(results: Mapping[str, Any]) -> dict[str, float]:
    """Metrics by name: "accuracy,none" -> "accuracy", other filters stay in the name."""
    values = {}
    for name, value in results.items():
        metric, _, used = name.partition(",")
        if isinstance(value, Real) and used and "_stderr" not in metric:
            values[metric if used == "none" else f"{metric} ({used})"] = float(value)
    return values


def _numbers(samples: Sequence[Mapping[str, Any]], metric: str) -> list[float] | None:
    """A metric's values by sample, where these are plain numbers."""
    each = [sample.get(metric) for sample in samples]
    if not all(isinstance(value, Real) for value in each):
        return None
    return [float(value) for value in each]  # type: ignore[arg-type]


def _judged(
    answered: Mapping[tuple[str, int], Prediction],
    name: str,
    sample: Mapping[str, Any],
    values: Mapping[str, float],
) -> Prediction:
    own = {m: float(sample[m]) for m in values if isinstance(sample.get(m), Real)}
    target = sample.get("target")
    truth = target if isinstance(target, list) else [target]
    return replace(
        answered[name, sample["doc_id"]],
        references=tuple(map(str, truth)),
        scores=own,
        category=name,
    )


def _asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a task's configuration decides its prompts and answers; JSON-ready."""
    names = ("generation_kwargs", "lmms_eval_specific_kwargs", "num_fewshot", "metadata", "repeats")
    return {name: _plain(config[name]) for name in names if config.get(name) is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
