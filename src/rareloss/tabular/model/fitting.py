"""Train one model on a table, by the engine of a comparison, and save it as a folder."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from rareloss.decisions import Calibration, calibrate, highest_precision
from rareloss.objectives import Objective, RecallAtTop
from rareloss.table import (
    Data,
    DataError,
    Schema,
    Table,
    TableOptions,
    TableSpec,
    load,
    source_of,
    split,
    whole_file,
    writable,
)
from rareloss.tabular.comparison.choice import choose
from rareloss.tabular.comparison.comparison import Comparison, versions
from rareloss.tabular.comparison.runs import TREES, Store, one_thread
from rareloss.tabular.methods import BASELINE, RECIPE, Method, methods_for
from rareloss.tabular.model.card import measure
from rareloss.tabular.model.effects import curves
from rareloss.tabular.model.inputs import Inputs
from rareloss.tabular.model.model import Model, layers_of, network_of, replace_folder
from rareloss.tabular.model.profile import Profile
from rareloss.tabular.model.reading import written_threshold
from rareloss.tabular.models import Family, find_model
from rareloss.tabular.training import Fitted, Task, score_with
from rareloss.tabular.ways import fit_methods, fit_trees
from rareloss.training import TEMPERATURES

__all__ = ["fit"]

# Fewer groups than this of a class are not folded apart by a calibration.
LEAST_GROUPS = 5


def fit(
    data: Data | None = None,
    *,
    out: str | Path,
    held_out: str | Path | None = None,
    objective: str | Objective | None = None,
    method: str | None = None,
    model: str | None = None,
    compared: str | Path | None = None,
    seed: int | None = None,
    trials: int | None = None,
    say: Callable[[str], None] | None = None,
    **table_options: Unpack[TableOptions],
) -> Model:
    """Train a model and write its folder; what is finished of a killed call is taken over by the same call.

    The rows are split as a comparison splits them under this seed, and the model is the one that it would have judged:
    train rows teach, validation rows choose, cut the threshold and calibrate, test rows are for the card.

    Args:
        data: as :func:`rareloss.table.load` takes them.
        out: the folder to write, which must not exist. Beside it stands ``<out>.unfinished`` while this runs.
        held_out: another parquet or csv file, to write the test rows to, as they were found: what the model has not
            seen, to score and report on.
        objective: an operating point; ``"ap"`` by default. For average precision the threshold lets as many rows pass
            as there are positives.
        method: how to train, by the name that a comparison has for it: ``"tuned_ce"`` by default,
            ``"smooth_ap_stage"``.
        model: what to train: ``"linear"`` by default, ``"additive"``, ``"mlp"``, ``"trees"`` (boosted, the same as
            ``method="trees"``), or ``module:function`` for an ``nn.Sequential`` of ``nn.Linear`` and ``nn.ReLU``.
        compared: folder of a comparison of these data, or its ``results.json``, in place of objective and what it was
            called with. Of each model its verdict's winner, or else tuned cross-entropy, is a candidate. The simplest
            within one standard error of the best on validation is trained, unless ``model`` or ``method`` names
            another; code of the user's (``module:function``) runs only where ``model`` names it here too.
        seed: of the split and everything after it; 0 by default, with ``compared`` its first.
        trials: draws of hyper-parameters; 8 by default.
        say: called with each sentence that a user should read.
        table_options: which column is what: ``target``, ``positive`` and the others of
            :class:`rareloss.table.TableSpec`.

    Returns:
        the model, as ``Model.load(out)`` reads it.

    Raises:
        DataError: the data, an argument or the folder cannot be used; nothing was written.
    """
    say = say or (lambda sentence: None)
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists; name another folder for the model, or delete it")
    if not out.absolute().parent.is_dir():
        raise DataError(f"there is no folder {out.absolute().parent} to write {out.name} into")
    apart = None if held_out is None else writable(held_out, data)
    spec = TableSpec.of(**table_options)
    settings: dict[str, Any] = {"objective": None if objective is None else str(objective), "method": method}
    settings |= {"model": model, "seed": seed, "trials": trials}
    told = None
    if compared is not None:
        if spec != TableSpec(header=spec.header):
            raise DataError("which column is what comes from the comparison; give it, or the folder of a comparison")
        told, spec = _told(Path(compared), settings, say)
    _fill(settings)
    judged, chosen, family = _checked(settings)
    table = _loaded(data, spec, told)
    settings |= table.spec.to_dict()
    for sentence in table.notes:
        say(sentence)
    fold = split(table, settings["seed"])
    own = {**settings, "recipe": RECIPE, "temperatures": TEMPERATURES}
    identity = {**own, "data": table.sha256, "split_by": table.split_by, "versions": versions()}
    identity["group_and_time"] = table.split_sha256

    work = out.with_name(out.name + ".unfinished")
    if work.exists() and not (work / "runs" / "settings.json").is_file():
        raise DataError(f"{work} is no unfinished work of rareloss fit, which would keep its own there; move it away")
    Store(work, identity)
    task = Task(table, fold, judged, settings["seed"], remember=_Trials(work / "runs", say))
    try:
        with one_thread():  # as a comparison does, so that the numbers are the same
            found = _trained(task, family, chosen, settings)
            fitted = _model(task, found, {"method": chosen.name, "model": settings["model"]}, settings, told)
        if apart is not None:
            _write_rows(data, table, fold.test, apart)
        fitted.write(work / "model")
        replace_folder(work / "model", out)
    except OSError as error:
        if out.exists():
            raise DataError(f"{out} was written meanwhile by another fit, and is kept as it is") from error
        raise DataError(f"{out} cannot be written: {error.strerror}; the work is kept in {work}") from error
    shutil.rmtree(work, ignore_errors=True)
    return Model.load(out)


def _fill(settings: dict[str, Any]) -> None:
    """Take the defaults for what was not said."""
    if TREES in (settings["model"], settings["method"]):  # the one names the other
        settings |= {name: settings[name] or TREES for name in ("model", "method")}
    defaults = {"objective": "ap", "method": BASELINE, "model": "linear", "seed": 0, "trials": 8}
    settings |= {name: value for name, value in defaults.items() if settings[name] is None}


def _loaded(data: Data | None, spec: TableSpec, told: Mapping[str, Any] | None) -> Table:
    """Read a table of two classes, the one that was compared where one was."""
    table = load(data, spec)
    if table.multiclass:
        some = ", ".join(map(repr, table.classes[:8])) + (", ..." if len(table.classes) > 8 else "")
        raise DataError(
            f"the target of {table.name} has {len(table.classes)} classes ({some}); a saved model decides between two: "
            "name one as positive"
        )
    known = told and (told["data"]["sha256"], told["data"].get("split_sha256"))
    if known and known != (table.sha256, table.split_sha256):
        raise DataError(f"other data than {table.name} is now were compared; run rareloss compare again")
    return table


def _trained(task: Task, family: Family | None, chosen: Method, settings: Mapping[str, Any]) -> Fitted:
    """Train what was chosen; without a family, boosted trees."""
    if family is None:
        return fit_trees(task, settings["trials"])
    ((_, found),) = fit_methods(task, family, [chosen], settings["trials"])
    if isinstance(found, Exception):
        raise DataError(f"{chosen.name} of {settings['model']} failed: {type(found).__name__}: {found}") from found
    return found


def _write_rows(data: Data | None, table: Table, rows: np.ndarray, path: Path) -> None:
    """Write rows of a table as the columns of the data that they came from; of a csv in a csv, letter by letter."""
    assert table.kept is not None
    source = source_of(data, table.spec)
    found = source.table().take(table.kept[rows])
    with whole_file(path) as file:
        if path.suffix.lower() == ".csv":
            # Whole numbers stay whole where some are missing.
            frame = found.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype()}.get)
            frame.to_csv(file, index=False, sep=source.separator)
        else:
            pq.write_table(found, file)


def _checked(settings: Mapping[str, Any]) -> tuple[Objective, Method, Any]:
    try:
        judged = Objective.parse(settings["objective"])
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from error
    known = {method.name: method for method in methods_for(judged)}
    if settings["method"] not in known:
        raise DataError(f"there is no method {settings['method']!r} for {judged}; there are {', '.join(known)}")
    chosen = known[settings["method"]]
    if (chosen.name == TREES) != (settings["model"] == TREES):
        raise DataError(
            f"boosted trees are grown in one way, model {TREES!r} by method {TREES!r}, got model "
            f"{settings['model']!r} by {settings['method']!r}"
        )
    for name, least in (("seed", 0), ("trials", 1)):
        if type(settings[name]) is not int or settings[name] < least:
            raise DataError(f"{name} must be a whole number of at least {least}, got {settings[name]!r}")
    if chosen.name == TREES:
        return judged, chosen, None
    family = find_model(settings["model"])
    layers_of(family.build(3, 1))  # refused before it is trained, not after
    return judged, chosen, family


def _told(folder: Path, settings: dict[str, Any], say: Callable[[str], None]) -> tuple[dict[str, Any], TableSpec]:
    """Take over what a comparison was called with, and what it found best."""
    own = ("seed", "trials", "model", "method")
    given = [name for name, value in settings.items() if value is not None and name not in own]
    if given:
        raise DataError(f"{', '.join(given)} come from the comparison; give them, or the folder of a comparison")
    try:
        results = Comparison.from_json(folder if folder.is_file() else folder / "results.json").results
        asked = results["settings"]
        taken = {name: asked[name] for name in ("trials", "objective")}
        spec = TableSpec(**{name: asked[name] for name in TableSpec().to_dict() if name in asked})
        first = asked["seeds"][0]
        known = results["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{folder} holds no results.json of rareloss compare: {error}") from error
    if not results["verdicts"] or not known:
        raise DataError(f"the comparison in {folder} has no verdict yet; let it finish")
    choice = choose(results, model=settings["model"], method=settings["method"])
    if choice.sentence:
        say(choice.sentence)
    model = choice.model
    if ":" in model and settings["model"] is None:
        raise DataError(
            f"the comparison names the code {model!r} as its model; a file of results runs no code: if it is "
            f"yours, name it too (--model {model})"
        )
    taken |= {"model": model, "method": choice.method, "seed": first}
    settings |= {name: value for name, value in taken.items() if settings[name] is None}
    return results, spec


# ------------------------------------------------------------------------------------------------------- after training


def _model(
    task: Task, found: Fitted, chosen: Mapping[str, str], settings: Mapping[str, Any], told: Mapping[str, Any] | None
) -> Model:
    table, fold = task.table, task.fold
    assert found.model is not None
    layers_of(found.model)
    scores = {
        "validation": found.score(task.inputs(found.kind)[1]).numpy(),
        "test": found.score(task.test_inputs(found.kind)).numpy(),
    }
    for part, values in scores.items():
        if not np.isfinite(values).all():
            raise DataError(f"the scores of the {part} rows are not finite; try another method or model")
    labels = table.target == 1
    validation = scores["validation"].astype(np.float64)
    weights = {
        part: None if weight is None else weight.double().numpy()
        for part, weight in (("validation", task.validation_weight), ("test", task.test_weight))
    }
    threshold, about = _threshold(validation, labels[fold.validation], weights["validation"], task.objective)
    calibration = _calibration(
        validation, labels[fold.validation], weights["validation"], table, fold.validation, threshold, task.seed
    )
    inputs = Inputs.of(task.fitted_inputs(found.kind), found.kind)
    profile = _profile(task, found, inputs, scores["validation"])
    probability = calibration(scores["test"])
    groups = None if table.group is None else table.group[fold.test]
    card = {
        "schema": 1,
        "target": table.target_name,
        "classes": list(table.classes),
        "objective": {"text": str(task.objective), "name": task.objective.name},
        "chosen": {**chosen, **found.chosen, "kind": found.kind, "kept": found.kept, "validation": found.validation},
        "threshold": {"value": written_threshold(threshold), "about": about},
        "calibration": _said(calibration),
        "held_out": measure(
            scores["test"], probability, labels[fold.test], threshold, task.objective, groups, weights["test"]
        ),
        "data": {
            "name": table.name,
            "sha256": table.sha256,
            "rows": len(table.target),
            "rate": table.rate,
            "split_by": table.split_by,
            "grouped": table.group is not None,
            "folds": {name: len(rows) for name, rows in fold._asdict().items()},
            "notes": list(table.notes),
        },
        "effects": curves(found.model, inputs, profile.centre, table.frame.iloc[fold.train]),
        "settings": dict(settings),
        "compared": None
        if told is None
        else "A comparison chose it, whose verdict had seen test rows: " + told["overall"],
        "versions": {**versions(), "safetensors": version("safetensors")},
    }
    return Model(
        found.model,
        inputs,
        Schema(table.columns, table.unused),
        table.target_name,
        (table.classes[0], table.classes[1]),
        task.objective,
        threshold,
        calibration.calibrator,
        profile,
        json.loads(json.dumps(card)),
    )


def _profile(task: Task, found: Fitted, inputs: Inputs, scores: np.ndarray) -> Profile:
    train = task.table.frame.iloc[task.fold.train]
    unlisted = {name: rows / len(train) for name, rows in inputs.unlisted(train).items()}
    weights = [None if weight is None else weight.numpy() for weight in (task.train_weight, task.validation_weight)]
    linear = task.inputs(found.kind)[0].numpy() if isinstance(found.model, torch.nn.Linear) else None
    return Profile.of(train, weights[0], unlisted, scores, weights[1], linear)


def _threshold(
    scores: np.ndarray, labels: np.ndarray, weight: np.ndarray | None, objective: Objective
) -> tuple[float, str]:
    """Set the threshold half way to the next score, so that no rounding of a later day moves a row across."""
    point, about = objective, f"{objective.name}, on validation"
    if not objective.sets_threshold:
        point, about = (
            RecallAtTop(float(np.average(labels, weights=weight))),
            "as many as there are positives, on validation",
        )
    weights = None if weight is None else torch.from_numpy(weight)
    threshold = float(point.threshold(torch.from_numpy(scores), torch.from_numpy(labels), weights))
    if threshold == np.inf:
        nearest = _nearest(scores, labels, weight, point)
        return threshold, f"{about}: none of these rows are worth an alert, so nobody is alerted{nearest}"
    if threshold == -np.inf:
        return threshold, f"{about}: everybody is alerted"
    above = scores[scores > threshold]
    return (threshold if not len(above) else threshold + (float(above.min()) - threshold) / 2), about


def _nearest(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray | None, point: Objective) -> str:
    """Name the highest precision that there is, where one was asked for that there is not."""
    if point.precision is None:
        return ""
    weight = np.ones(len(scores)) if weight is None else weight
    precision, _, score = highest_precision(scores, labels, weight)
    rows = int((scores >= score).sum())
    return f"; the highest precision is {precision:.1%}, of the {rows:,} rows scored {score:.6g} or more"


def _calibration(
    scores: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None,
    table: Table,
    rows: np.ndarray,
    threshold: float,
    seed: int,
) -> Calibration:
    groups = None if table.group is None else table.group[rows]
    if groups is not None and min(len(np.unique(groups[labels == label])) for label in (False, True)) < LEAST_GROUPS:
        groups = None
    at = threshold if np.isfinite(threshold) else None  # near an infinite one there are no rows
    return calibrate(scores, labels, weight, threshold=at, groups=groups, seed=seed)


def _said(calibration: Calibration) -> dict[str, Any]:
    quality = {
        when: {
            where: {
                **found._asdict(),
                **{name: getattr(found, name)._asdict() for name in ("log_loss", "ece")},
            }
            for where, found in getattr(calibration, when).items()
        }
        for when in ("before", "after")
    }
    return {"method": calibration.method, "candidates": calibration.candidates, **quality}


# -------------------------------------------------------------------------------------------------------------- resume


class _Trials:
    """Keep finished trials, each in a file that appears whole or not at all."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say

    def __call__(self, key: Mapping[str, Any], make: Callable[[], Fitted]) -> Fitted:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        path = self.folder / f"{name}.safetensors"
        try:
            found = _read_trial(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            found = make()
            _keep_trial(path, found)
        else:
            self.say(f"taken over from before: {', '.join(f'{name} {value}' for name, value in found.chosen.items())}")
        return found


def _read_trial(path: Path) -> Fitted:
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["trial"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = network_of(said.pop("layers"), tensors)
    return Fitted(**said, score=partial(score_with, model, 1), model=model)


def _keep_trial(path: Path, found: Fitted) -> None:
    assert found.model is not None
    said = {name: getattr(found, name) for name in ("kind", "validation", "chosen", "kept", "history")}
    said["layers"] = layers_of(found.model)
    tensors = {name: values.contiguous() for name, values in found.model.state_dict().items()}
    with whole_file(path) as file:
        file.write(save_tensors(tensors, {"trial": json.dumps(said)}))
