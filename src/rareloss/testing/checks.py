"""Checks of a loss: what its gradient must not depend on (precision, ranks, chunks, order, compiler, interruption)."""

import copy
import io
import logging
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rareloss.losses import RankingLoss
from rareloss.testing.case import Call, Case, Run, default_call, describe_error, relative_error, to_dtype
from rareloss.testing.processes import run_ranks
from rareloss.testing.report import Check
from rareloss.training import LossWarmupWrapper, large_batch

__all__ = ["CHECKS", "CheckFunction", "run_check"]

FLOAT32_ERROR = 1e-5


class Outcome(NamedTuple):
    """A measurement, and the most that passes; ``passed`` where that is not ``measured <= tolerance``."""

    measured: float | None
    tolerance: float | None
    message: str = ""
    passed: bool | None = None


class NotApplicable(Exception):
    """Raised by a variant that does not apply to the loss, with the reason."""


class Skipped(Exception):
    """Raised by a variant that cannot run here, with the reason."""


class CheckFunction(NamedTuple):
    """A check.

    Attributes:
        name: as on the command line.
        meaning: what a failure means for training.
        variants: yields the name of each variant, and a function that runs it.
    """

    name: str
    meaning: str
    variants: Callable[[Case], Iterator[tuple[str, Callable[[], Outcome]]]]


Variants = Iterator[tuple[str, Callable[[], Outcome]]]
CHECKS: list[CheckFunction] = []


def _check(name: str, meaning: str) -> Callable[[Callable[[Case], Variants]], Callable[[Case], Variants]]:
    def register(variants: Callable[[Case], Variants]) -> Callable[[Case], Variants]:
        CHECKS.append(CheckFunction(name, meaning, variants))
        return variants

    return register


def run_check(check: CheckFunction, case: Case) -> Iterator[Check]:
    """Run every variant of a check; an exception that the loss raises is a failure."""
    try:
        for variant, run in check.variants(case):
            yield replace(_outcome(run), name=check.name, variant=variant, meaning=check.meaning)
    except Exception as error:
        yield Check(check.name, "all", "fail", message=f"It raised {describe_error(error)}.", meaning=check.meaning)


def _outcome(run: Callable[[], Outcome]) -> Check:
    try:
        measured, tolerance, message, passed = run()
    except NotApplicable as reason:
        return Check("", "", "not applicable", message=str(reason))
    except Skipped as reason:
        return Check("", "", "skipped", message=str(reason))
    except Exception as error:
        return Check("", "", "fail", message=f"It raised {describe_error(error)}.")
    if passed is None:
        passed = measured is not None and tolerance is not None and measured <= tolerance
    if not passed and measured is not None and not math.isfinite(measured):
        message = f"{message} The value or its gradient is not finite, or not 0 where it should be.".strip()
    return Check("", "", "pass" if passed else "fail", measured, tolerance, message)


def _errors(actual: Run, expected: Run) -> tuple[float, float]:
    # A value that is a small difference of large terms is measured by the gradient, of one unit of the logits.
    least = max((float(gradient.norm()) for gradient in expected.gradients), default=0.0)
    gradient = relative_error(actual.gradients, expected.gradients)
    return relative_error(actual.values, expected.values, least_norm=least), gradient


def _compare(actual: Run, expected: Run, tolerance: float) -> Outcome:
    value, gradient = _errors(actual, expected)
    return Outcome(max(value, gradient), tolerance, f"Value off by {value:.2g}, gradient by {gradient:.2g}.")


def _compare_bits(actual: Run, expected: Run) -> Outcome:
    if actual.equals(expected):
        return Outcome(0.0, 0.0)
    return Outcome(max(_errors(actual, expected)), 0.0, "The two runs should be equal bit for bit.", passed=False)


# ----------------------------------------------------------------------------------------------- value and gradient


@_check("accuracy", "Rounding errors of float32 are larger than they have to be, so the gradient is partly noise.")
def accuracy(case: Case) -> Variants:
    """Compare float32 with float64, of the logits and of the parameters of a model."""
    yield "logits in float32", partial(_logits_in_float32, case)
    yield "parameters in float32", partial(_parameters_in_float32, case)


def _logits_in_float32(case: Case) -> Outcome:
    batches = case.draw_batches()
    actual = case.run(case.new_loss(), batches, dtype=torch.float32)
    return _compare(actual, case.reference(batches), _float32_tolerance(case, batches))


def _parameters_in_float32(case: Case) -> Outcome:
    # In float64 the loss sees the logits of the float32 model, whose rounding is no fault of the loss.
    if case.model is None:
        raise NotApplicable("No model was given.")
    batches = case.draw_batches()
    tolerance = _float32_tolerance(case, batches)
    actual, expected = Run([], []), Run([], [])
    single, double = copy.deepcopy(case.model).eval(), copy.deepcopy(case.model).double().eval()
    loss, reference = case.new_loss(), case.new_loss(torch.float64)
    for rows in batches:
        inputs, targets = case.inputs[rows], case.targets[rows]
        logits = single(inputs)
        value = case.call(loss, logits, to_dtype(targets, logits.dtype), rows)
        actual.values.append(value.detach())
        actual.gradients.append(_parameter_gradient(single, value.sum()))
        leaf = logits.detach().double().requires_grad_()
        value = case.call(reference, leaf, to_dtype(targets, leaf.dtype), rows)
        (grad_output,) = torch.autograd.grad(value.sum(), leaf)
        expected.values.append(value.detach())
        expected.gradients.append(
            _parameter_gradient(double, (double(to_dtype(inputs, leaf.dtype)) * grad_output).sum())
        )
    return _compare(actual, expected, tolerance)


def _float32_tolerance(case: Case, batches: list[Tensor]) -> float:
    # Four times what moving each logit by the rounding of the largest does to the gradient, if that is more.
    if case.dtype != torch.float64:
        raise NotApplicable(f"It does not run in float64: {case.float64_error}.")
    generator = torch.Generator().manual_seed(case.seed)
    logits = case.logits.double()
    sign = torch.rand(logits.shape, generator=generator).round().to(logits) * 2 - 1
    moved = logits + sign * logits.abs().max() * torch.finfo(torch.float32).eps / 2
    actual = case.run(case.new_loss(torch.float64), batches, dtype=torch.float64, logits=moved)
    return max(FLOAT32_ERROR, 4 * relative_error(actual.gradients, case.reference(batches).gradients))


def _parameter_gradient(model: nn.Module, value: Tensor) -> Tensor:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


@_check("ranks", "Several processes take other steps than one: a learning rate found on one does not carry over.")
def ranks(case: Case) -> Variants:
    """Compare DDP's gradient over real processes with that of one process on the whole batch."""

    def outcome(error: float | None, scale: float | None, message: str) -> Outcome:
        if error is None or scale is None:
            return Outcome(None, None, f"It raised on {message}")
        return Outcome(
            error, case.rounding, f"The gradient is {scale:.4g} times that of one process." if error > 1e-3 else ""
        )

    def skipped() -> Outcome:
        raise Skipped("No number of ranks was asked for.")

    if not case.ranks:
        yield "gloo processes", skipped
        return
    for result in run_ranks(case):
        variant = f"{result.ranks} rank{'s' if result.ranks > 1 else ''}, {result.split}"
        yield variant, partial(outcome, result.error, result.scale, result.message)


@_check("chunks", "The gradient of a batch depends on how it was cut to fit into memory.")
def chunks(case: Case) -> Variants:
    """Compare the model's gradient through ``large_batch``, in three chunks, with that of the batch at once."""
    yield "large_batch in 3 chunks", partial(_chunks, case)


def _chunks(case: Case) -> Outcome:
    if case.model is None:
        raise NotApplicable("No model was given.")
    model = copy.deepcopy(case.model).to(case.dtype).eval()
    inputs, targets = to_dtype(case.inputs, case.dtype), to_dtype(case.targets, case.dtype)
    rows = torch.arange(len(case.targets), device=case.logits.device)

    def run(forward: Callable[[Tensor], Tensor]) -> Run:
        model.zero_grad()
        value = case.call(case.new_loss(case.dtype), forward(inputs), targets, rows)
        value.sum().backward()
        gradients = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
        return Run([value.detach()], [torch.cat(gradients)])

    return _compare(run(large_batch(model, chunk_size=-(-len(rows) // 3))), run(model), case.rounding)


@_check("row order", "The loss depends on how the loader happens to order rows, which is noise.")
def row_order(case: Case) -> Variants:
    """Compare a first step with the same rows in another order; later steps may depend on it through the queue."""
    yield "rows of a step shuffled", partial(_shuffled, case)


def _shuffled(case: Case) -> Outcome:
    generator = torch.Generator().manual_seed(case.seed + 1)
    actual, expected = Run([], []), Run([], [])
    for rows in case.draw_batches(3):
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        for run, batch in ((actual, rows[order]), (expected, rows)):
            step = case.reference([batch])
            run.values.extend(step.values)
            run.gradients.extend(step.gradients)
    return _compare(actual, expected, case.rounding)


@_check("precision", "Mixed precision stops, or follows another gradient than float32 does on the same logits.")
def precision(case: Case) -> Variants:
    """Compare half logits, and autocast, with float32 on the same logits."""
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield f"{name} logits", partial(_half_logits, case, dtype)
        yield f"autocast {name}", partial(_autocast, case, dtype)


def _half_logits(case: Case, dtype: torch.dtype) -> Outcome:
    batches, logits = case.draw_batches(3), case.logits.to(dtype).to(torch.float32)
    expected = case.run(case.new_loss(), batches, dtype=torch.float32, logits=logits)
    # As a GradScaler does, gradients are kept above what float16 rounds to 0; and the scale itself below its largest.
    largest = max(float(gradient.abs().max()) for gradient in expected.gradients)
    scale = 2.0 ** max(0, min(15, math.floor(math.log2(64 / largest)))) if 0 < largest < math.inf else 1.0
    actual = case.run(case.new_loss(), batches, dtype=dtype, logits=logits, scale=scale)
    return _compare(actual, expected, 4 * torch.finfo(dtype).eps)


def _autocast(case: Case, dtype: torch.dtype) -> Outcome:
    batches = case.draw_batches(3)
    expected = case.run(case.new_loss(), batches, dtype=torch.float32)
    with torch.autocast(case.logits.device.type, dtype):
        actual = case.run(case.new_loss(), batches, dtype=torch.float32)
    return _compare(actual, expected, 4 * torch.finfo(dtype).eps)


@_check("compile", "Under torch.compile the loss splits the graph, or is another one than without.")
def compiled(case: Case) -> Variants:
    """Count graph breaks, and compare the compiled loss with the eager one."""
    batches, loss = case.draw_batches(2), case.new_loss(case.dtype)

    def step(_: nn.Module, logits: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        return case.call(loss, logits, targets, rows)

    def no_graph() -> Outcome:
        raise Skipped("It does not compile in one graph.")

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the report says what breaks the graph
    torch.compiler.reset()
    try:
        run = case.run(loss, batches, call=torch.compile(step, fullgraph=True, backend="aot_eager"))
    except Exception as error:
        message = f"With fullgraph=True it raised {describe_error(error)}."
        yield "graph breaks", partial(_graph_breaks, case, batches[0], message)
        yield "compiled value and gradient", no_graph
    else:
        yield "graph breaks", lambda: Outcome(0, 0)
        yield "compiled value and gradient", lambda: _compare(run, case.reference(batches), case.rounding)
    finally:
        torch.compiler.reset()
        logging.disable(level)


def _graph_breaks(case: Case, rows: Tensor, message: str) -> Outcome:
    torch.compiler.reset()
    leaf = case.logits[rows].detach().to(case.dtype).requires_grad_()
    targets = to_dtype(case.targets[rows], leaf.dtype)
    try:
        explained = torch._dynamo.explain(case.call)(case.new_loss(case.dtype), leaf, targets, rows)
    except Exception as error:
        return Outcome(None, None, f"{message} Explaining it raised {describe_error(error)}.", passed=False)
    return Outcome(float(explained.graph_break_count), 0.0, message, passed=False)


# ------------------------------------------------------------------------------------------------- state of the loss


@_check("resume", "A run that is interrupted and resumed goes on from another state, and cannot be repeated.")
def resume(case: Case) -> Variants:
    """Save the state after some steps, load it into a new loss, go on, and compare bit by bit."""
    batches = case.draw_batches(8)
    uninterrupted = case.run(case.new_loss(), batches, dtype=torch.float32)

    def resumed(stop: int) -> Outcome:
        first, second = case.new_loss(), case.new_loss()
        case.run(first, batches[:stop], dtype=torch.float32)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=False, map_location=case.logits.device))
        return _compare_bits(case.run(second, batches[stop:], dtype=torch.float32), uninterrupted.from_step(stop))

    for stop in (1, 3, 6):
        yield f"saved after {stop} step{'s' if stop > 1 else ''}", partial(resumed, stop)


@_check("queue gradient scale", "The longer the queue, the smaller the step: the queue lowers the learning rate.")
def queue_gradient_scale(case: Case) -> Variants:
    """Cut a pool into four batches, remember three, rank the fourth, each in turn; compare with all of it live.

    Each row is live once, so the mean of the four gradients is the gradient of the pool, exactly.
    """
    yield "a quarter live, the rest remembered", partial(_queue_gradient_scale, _without_schedule(case))


def _queue_gradient_scale(case: Case) -> Outcome:
    size = len(case.targets)
    while size >= 16:
        batches = _quarters(case, size)
        pool = case.reference([torch.cat(batches)])
        runs = [case.reference([*batches[:last], *batches[last + 1 :], batches[last]]) for last in range(4)]
        alone = [case.reference([batch]) for batch in batches]
        if all(torch.equal(run.values[-1], one.values[-1]) for run, one in zip(runs, alone, strict=True)):
            raise NotApplicable(
                "It remembers no rows: the loss of a batch does not depend on earlier batches of other rows."
            )
        if relative_error([run.values[-1] for run in runs], pool.values * 4) <= math.sqrt(case.rounding):
            gradient, expected = torch.stack([run.gradients[-1] for run in runs]).mean(0), pool.gradients[0]
            scale = float((gradient * expected).sum() / (expected * expected).sum())
            message = f"The gradient is {scale:.4g} times that of the pool with every row live."
            return Outcome(relative_error([gradient], [expected]), 10 * case.rounding, message)
        size //= 2  # the queue is too short for the pool
    if isinstance(case.loss, RankingLoss):
        raise ValueError("live and remembered rows together do not give the value of their pool")
    raise NotApplicable("It remembers no queue of rows: with them, a batch does not give the value of their pool.")


def _without_schedule(case: Case) -> Case:
    # A schedule counts calls, which is no memory of rows. The queue is emptied.
    loss = case.loss.main_loss if isinstance(case.loss, LossWarmupWrapper) else case.loss
    loss = copy.deepcopy(loss)
    if isinstance(loss, RankingLoss):
        loss.reset_queue()
    return replace(case, loss=loss)


def _quarters(case: Case, size: int) -> list[Tensor]:
    # Row indices of four batches of one size, with as many rare rows each.
    generator = torch.Generator().manual_seed(case.seed)
    rare, frequent = (rows[torch.randperm(len(rows), generator=generator)] for rows in case.split_rare())
    targets = case.targets.cpu().reshape(len(case.targets), -1)
    kept = (targets != getattr(case.loss, "ignore_index", math.nan)).all(1)  # nothing equals NaN
    rare, frequent = rare[kept[rare]], frequent[kept[frequent]]
    rare = rare[: max(4, len(rare) * size // len(targets))]
    rows = torch.cat([rare, frequent[: size - len(rare)]])
    rows = rows[: len(rows) // 4 * 4]
    return [rows[batch::4].to(case.logits.device) for batch in range(4)]


@_check("NaN poisoning", "One overflow, which an AMP scaler would skip, ruins the steps after it, or all of them.")
def nan_poisoning(case: Case) -> Variants:
    """Give a batch with a logit that is not finite, and then clean ones."""
    yield "clean batches after a NaN logit", partial(_poisoned, case, math.nan)
    yield "clean batches after an infinite logit", partial(_poisoned, case, math.inf)


def _poisoned(case: Case, bad: float) -> Outcome:
    batches, loss = case.draw_batches(4), case.new_loss()
    case.run(loss, batches[:1], dtype=torch.float32)
    before = _count_nan(loss)
    logits = case.logits.clone()
    logits.view(len(logits), -1)[batches[0][0], 0] = bad
    refused = ""
    try:
        case.run(loss, batches[:1], dtype=torch.float32, logits=logits)
    except Exception as error:
        refused = f" The batch itself was refused: {describe_error(error)}."
    after = case.run(loss, batches, dtype=torch.float32)
    broken = sum(not bool(torch.isfinite(tensor).all()) for tensors in after for tensor in tensors)
    left = _count_nan(loss) - before
    message = f"{broken} of {2 * len(batches)} values and gradients are not finite, and the state holds {left} NaN."
    return Outcome(broken + left, 0, (message if broken + left else "") + refused)


def _count_nan(loss: nn.Module) -> int:
    tensors = [value for value in loss.state_dict().values() if isinstance(value, Tensor) and value.is_floating_point()]
    return sum(int(torch.isnan(tensor).sum()) for tensor in tensors)


@_check("padding", "Rows that should not count change what is learned from the others.")
def padding(case: Case) -> Variants:
    """Add rows that are absent, by ``ignore_index`` or by weight 0, and compare with the batch without them."""
    yield "rows of ignore_index", partial(_ignored, case, None)
    yield "rows of ignore_index that hold NaN", partial(_ignored, case, math.nan)
    yield "rows of weight 0", partial(_weight_zero, case)


def _ignored(case: Case, logit: float | None) -> Outcome:
    main = getattr(case.loss, "main_loss", None)
    ignore_index = getattr(case.loss, "ignore_index", getattr(main, "ignore_index", None))
    if not isinstance(ignore_index, int):
        raise NotApplicable("It has no ignore_index.")
    targets = case.targets if case.targets.dtype != torch.bool else case.targets.long()
    case = replace(case, targets=targets)
    return _padded(case, torch.full_like(targets[: _padding_rows(case)], ignore_index), logit=logit)


def _weight_zero(case: Case) -> Outcome:
    def weighted(loss: nn.Module, logits: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        weight = (indices < len(case.targets)).to(logits.dtype)
        try:
            value: Tensor = loss(logits, targets, sample_weight=weight)
        except ValueError:  # some want it in the shape of the logits
            value = loss(logits, targets, sample_weight=weight.view(-1, *[1] * (logits.ndim - 1)).expand_as(logits))
        return value

    if case.call is not default_call:
        raise NotApplicable("It is called in a way of its own.")
    try:
        return _padded(case, case.targets[: _padding_rows(case)], call=weighted)
    except TypeError as error:
        raise NotApplicable(f"It takes no sample_weight: {describe_error(error)}.") from error


def _padding_rows(case: Case) -> int:
    return max(1, len(case.targets) // 8)


def _padded(case: Case, absent: Tensor, *, logit: float | None = None, call: Call | None = None) -> Outcome:
    batches = case.draw_batches(3)
    expected = case.reference(batches)
    extra = case.logits[: len(absent)] if logit is None else torch.full_like(case.logits[: len(absent)], logit)
    logits, targets = torch.cat([case.logits, extra]), torch.cat([case.targets, absent])
    indices = torch.arange(len(case.targets), len(targets), device=logits.device)
    generator = torch.Generator().manual_seed(case.seed)
    padded = []
    for rows in batches:
        # In between the others, whose order stays: which of them a short queue keeps depends on it.
        at = torch.randint(len(rows) + 1, (len(indices),), generator=generator).to(rows.device)
        padded.append(torch.cat([rows, indices])[torch.cat([torch.arange(len(rows)).to(at) + 0.5, at]).argsort()])
    actual = case.run(case.new_loss(case.dtype), padded, logits=logits, targets=targets, call=call)
    zeros = torch.zeros_like(expected.gradients[0][: len(absent)])
    expected = Run(expected.values, [torch.cat([gradient, zeros]) for gradient in expected.gradients])
    return _compare(actual, expected, case.rounding)


# ---------------------------------------------------------------------------------- speed, and the operating point


@_check("syncs", "The GPU idles while the host waits for a number in every step.")
def syncs(case: Case) -> Variants:
    """Count how often a training step on a GPU makes the host wait."""
    yield "waits of the host in a step", partial(_syncs, case)


def _syncs(case: Case) -> Outcome:
    if case.logits.device.type != "cuda":
        raise Skipped(f"The device is {case.logits.device}, no GPU.")
    first, rows = case.draw_batches(2)
    loss = case.new_loss()
    case.run(loss, [first], dtype=torch.float32)
    leaf = case.logits[rows].detach().float().requires_grad_()
    targets = to_dtype(case.targets[rows], leaf.dtype)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            case.call(loss, leaf, targets, rows).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return Outcome(sum("synchron" in str(warning.message).lower() for warning in caught), 0)


@_check("support", "Too few rows decide the threshold, so the gradient is mostly noise.")
def support(case: Case) -> Variants:
    """Ask ``diagnose`` whether the pool, with the queue filled, supports the operating point."""
    yield "rows behind the operating point", partial(_support, _without_schedule(case))


def _support(case: Case) -> Outcome:
    loss = case.new_loss(case.dtype)
    if not isinstance(loss, RankingLoss) or case.call is not default_call:
        raise NotApplicable("It has no diagnose that says how many rows it needs.")
    for _ in range(-(-loss.queue.size // max(1, len(case.targets)))):
        loss(case.logits, case.targets)
    seen = loss.diagnose(case.logits, case.targets)
    present = seen["positives_pool"] > 0
    if not bool(present.any()):
        raise NotApplicable("No class has positives in this batch.")
    rows, needed = float(seen["support"][present].min()), float(seen["support_needed"].max())
    if bool(seen["supported"][present].all()):
        return Outcome(rows, needed, passed=True)
    message = (
        f"{rows:.4g} rows of a pool of {int(seen['rows_pool'].max())} stand behind the operating point of a class, "
        f"{needed:.4g} are needed: use a larger batch or queue_size, or a wider point."
    )
    return Outcome(rows, needed, message, passed=False)


@_check("copy and pickle", "A copy, a worker process or a validation pass changes the training that follows.")
def copy_and_pickle(case: Case) -> Variants:
    """Copy, pickle and evaluate in the middle of a run, and compare what follows bit by bit."""
    batches = case.draw_batches(4)
    expected = case.run(case.new_loss(), batches, dtype=torch.float32).from_step(2)

    def continued(between: Callable[[nn.Module], nn.Module]) -> Outcome:
        loss = case.new_loss()
        case.run(loss, batches[:2], dtype=torch.float32)
        return _compare_bits(case.run(between(loss), batches[2:], dtype=torch.float32), expected)

    def evaluate(loss: nn.Module) -> nn.Module:
        if getattr(loss, "queue_in_eval", False):
            raise NotApplicable("It was made with queue_in_eval=True.")
        loss.eval()
        with torch.no_grad():
            case.call(loss, case.logits[batches[3]], case.targets[batches[3]], batches[3])
        return loss.train()

    yield "deepcopy", partial(continued, copy.deepcopy)
    yield "pickle", partial(continued, lambda loss: pickle.loads(pickle.dumps(loss)))
    yield "a call in eval mode leaves the state alone", partial(continued, evaluate)
