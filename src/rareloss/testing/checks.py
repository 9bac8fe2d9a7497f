"""The promises, each a function that tries it on a subject and yields what it found."""

import copy
import inspect
import io
import logging
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rareloss.losses import RankingLoss
from rareloss.testing.case import Run, Subject, call_plainly, describe_error, of_dtype, relative_error
from rareloss.testing.oracle import has_equation, value_and_gradient
from rareloss.testing.processes import over_ranks
from rareloss.testing.report import Check
from rareloss.training import LossWarmupWrapper, large_batch

__all__ = ["PROMISES", "Promise"]

IN_FLOAT32 = 1e-5
EQUATION_ROWS = 24


class Promise(NamedTuple):
    """A promise.

    Attributes:
        name: as on the command line.
        meaning: what a failure means for training.
        find: tries it, and yields what it found; ``meaning`` and ``promise`` are filled in later.
    """

    name: str
    meaning: str
    find: Callable[[Subject], Iterator[Check]]


def _judged(case: str, measured: float, tolerance: float, said: str = "") -> Check:
    passed = measured <= tolerance
    if not passed and not math.isfinite(measured):
        said = f"{said} The value or its gradient is not finite, or not 0 where it should be.".strip()
    return Check("", case, "pass" if passed else "fail", measured, tolerance, said)


def _raised(case: str, error: BaseException) -> Check:
    return Check("", case, "fail", said=f"It raised {describe_error(error)}.")


def _left_out(case: str, reason: str) -> Check:
    return Check("", case, "not applicable", said=reason)


def _compared(case: str, found: Run, expected: Run, tolerance: float) -> Check:
    value, gradient = _errors(found, expected)
    return _judged(case, max(value, gradient), tolerance, f"Value off by {value:.2g}, gradient by {gradient:.2g}.")


def _errors(found: Run, expected: Run) -> tuple[float, float]:
    # A value that is a small difference of large terms is measured by the gradient, of one unit of the logits.
    least = max((float(gradient.norm()) for gradient in expected.gradients), default=0.0)
    gradient = relative_error(found.gradients, expected.gradients)
    return relative_error(found.values, expected.values, least=least), gradient


def _tried(case: str, find: Callable[[], Check]) -> Check:
    try:
        return find()
    except Exception as error:
        return _raised(case, error)


# ----------------------------------------------------------------------------------------------- value and gradient


def oracle(subject: Subject) -> Iterator[Check]:
    """Compare float32 with the same loss in float64, and rareloss's own losses with their equation."""
    batches = subject.batches()
    if subject.exact == torch.float64:
        yield _tried("scores in float32", lambda: _scores(subject, batches))
        if subject.model is None:
            yield _left_out("parameters in float32", "No model was given.")
        else:
            yield _tried("parameters in float32", lambda: _parameters(subject, subject.model, batches))
    else:
        yield _left_out("scores in float32", f"It does not run in float64: {subject.why_not_finer}.")
    yield _equation(subject)


def _scores(subject: Subject, batches: list[Tensor]) -> Check:
    expected = subject.reference(batches)
    found = subject.run(subject.fresh(), batches, dtype=torch.float32)
    return _compared("scores in float32", found, expected, max(IN_FLOAT32, 4 * _conditioning(subject, batches)))


def _conditioning(subject: Subject, batches: list[Tensor]) -> float:
    # What moving each score by the rounding of the largest does to the gradient: float32 can do no better.
    generator = torch.Generator().manual_seed(subject.seed)
    scores = subject.scores.double()
    sign = torch.rand(scores.shape, generator=generator).round().to(scores) * 2 - 1
    rounded = scores + sign * scores.abs().max() * torch.finfo(torch.float32).eps / 2
    moved = subject.run(subject.fresh(torch.float64), batches, dtype=torch.float64, scores=rounded)
    return relative_error(moved.gradients, subject.reference(batches).gradients)


def _parameters(subject: Subject, model: nn.Module | None, batches: list[Tensor]) -> Check:
    # In float64 the loss sees the scores of the float32 model, whose rounding is no fault of the loss.
    assert model is not None
    found, expected = Run([], []), Run([], [])
    loss, fine_loss = subject.fresh(), subject.fresh(torch.float64)
    coarse, fine = copy.deepcopy(model).eval(), copy.deepcopy(model).double().eval()
    for rows in batches:
        inputs = subject.inputs[rows]
        scores = coarse(inputs)
        targets = subject.targets[rows]
        value = subject.call(loss, scores, of_dtype(targets, scores.dtype), rows)
        found.values.append(value.detach())
        found.gradients.append(_gradient(coarse, value.sum()))
        leaf = scores.detach().double().requires_grad_()
        value = subject.call(fine_loss, leaf, of_dtype(targets, leaf.dtype), rows)
        (grad_output,) = torch.autograd.grad(value.sum(), leaf)
        expected.values.append(value.detach())
        expected.gradients.append(_gradient(fine, (fine(of_dtype(inputs, leaf.dtype)) * grad_output).sum()))
    return _compared("parameters in float32", found, expected, max(IN_FLOAT32, 4 * _conditioning(subject, batches)))


def _gradient(model: nn.Module, value: Tensor) -> Tensor:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _equation(subject: Subject) -> Check:
    case = "the equation, row by row"
    if not has_equation(subject.loss) or subject.call is not call_plainly:
        return _left_out(case, "Equations are written out for rareloss's own losses, reduced to one number.")
    loss = subject.fresh(torch.float64)
    if isinstance(loss, RankingLoss):
        loss.reset_queue()
    rare, plain = subject.rare_and_plain()
    few = torch.cat([rare[: EQUATION_ROWS // 3], plain])[:EQUATION_ROWS]
    batches = [few[::2], few[1::2], few] if len(few) > 3 else [few]

    def compare() -> Check:
        found = subject.run(loss, batches, dtype=torch.float64)
        steps = [(subject.scores[rows], subject.targets[rows]) for rows in batches]
        values, gradients = value_and_gradient(subject.fresh(torch.float64), steps)
        tables = [torch.zeros_like(subject.scores, dtype=torch.float64) for _ in batches]
        for table, rows, gradient in zip(tables, batches, gradients, strict=True):
            table[rows] = torch.tensor(gradient, dtype=torch.float64).reshape(table[rows].shape).to(table.device)
        expected = Run([torch.tensor(value, dtype=torch.float64) for value in values], tables)
        return _compared(case, found, expected, 1e-6)

    return _tried(case, compare)


def ranks(subject: Subject) -> Iterator[Check]:
    """Compare DDP's gradient over real processes with that of one process on the whole batch."""
    if not subject.ranks:
        yield Check("", "gloo processes", "skipped", said="No number of ranks was asked for.")
        return
    for outcome in over_ranks(subject):
        case = f"{outcome.ranks} rank{'s' if outcome.ranks > 1 else ''}, {outcome.cut}"
        if outcome.error is None or outcome.scale is None:
            yield Check("", case, "fail", said=f"It raised on {outcome.said}")
        else:
            said = f"The gradient is {outcome.scale:.4g} times that of one process." if outcome.error > 1e-3 else ""
            yield _judged(case, outcome.error, subject.rounding, said)


def chunks(subject: Subject) -> Iterator[Check]:
    """Compare the model's gradient through ``large_batch``, in three chunks, with that of the batch at once."""
    case = "large_batch in 3 chunks"
    if subject.model is None:
        yield _left_out(case, "No model was given.")
        return
    model = copy.deepcopy(subject.model).to(subject.exact).eval()
    inputs, targets = of_dtype(subject.inputs, subject.exact), of_dtype(subject.targets, subject.exact)
    rows = torch.arange(len(subject.targets), device=subject.scores.device)

    def gradient(scores: Callable[[Tensor], Tensor]) -> Run:
        model.zero_grad()
        value = subject.call(subject.fresh(subject.exact), scores(inputs), targets, rows)
        value.sum().backward()
        gradients = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
        return Run([value.detach()], [torch.cat(gradients)])

    def compare() -> Check:
        in_chunks = large_batch(model, chunk_size=-(-len(rows) // 3))
        return _compared(case, gradient(in_chunks), gradient(model), subject.rounding)

    yield _tried(case, compare)


def row_order(subject: Subject) -> Iterator[Check]:
    """Compare steps from a fresh loss with the same rows in another order; what is remembered may depend on it."""
    generator = torch.Generator().manual_seed(subject.seed + 1)
    case = "rows of a step shuffled"

    def shuffled() -> Check:
        found, expected = Run([], []), Run([], [])
        for rows in subject.batches(3):
            order = torch.randperm(len(rows), generator=generator).to(rows.device)
            found = found.then(subject.reference([rows[order]]))
            expected = expected.then(subject.reference([rows]))
        return _compared(case, found, expected, subject.rounding)

    yield _tried(case, shuffled)


def precision(subject: Subject) -> Iterator[Check]:
    """Compare half logits, and autocast, with float32 on the same logits."""
    batches = subject.batches(3)
    kind = subject.scores.device.type
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        tolerance = 4 * torch.finfo(dtype).eps

        def in_half(dtype: torch.dtype = dtype, case: str = f"{name} logits", tolerance: float = tolerance) -> Check:
            rounded = subject.scores.to(dtype).to(torch.float32)
            expected = subject.run(subject.fresh(), batches, dtype=torch.float32, scores=rounded)
            found = subject.run(subject.fresh(), batches, dtype=dtype, scores=rounded, scale=_scale(expected))
            return _compared(case, found, expected, tolerance)

        def under_autocast(
            dtype: torch.dtype = dtype, case: str = f"autocast {name}", tolerance: float = tolerance
        ) -> Check:
            expected = subject.run(subject.fresh(), batches, dtype=torch.float32)
            with torch.autocast(kind, dtype):
                found = subject.run(subject.fresh(), batches, dtype=torch.float32)
            return _compared(case, found, expected, tolerance)

        yield _tried(f"{name} logits", in_half)
        yield _tried(f"autocast {name}", under_autocast)


def _scale(run: Run) -> float:
    # As a GradScaler does, gradients are kept above what float16 rounds to 0; and the scale itself below its largest.
    largest = max(float(gradient.abs().max()) for gradient in run.gradients)
    return 2.0 ** max(0, min(15, math.floor(math.log2(64 / largest)))) if 0 < largest < math.inf else 1.0


def compiled(subject: Subject) -> Iterator[Check]:
    """Count graph breaks, and compare the compiled loss with the eager one."""
    batches = subject.batches(2)
    loss = subject.fresh(subject.exact)

    def whole(_: nn.Module, logits: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        return subject.call(loss, logits, targets, rows)

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what breaks the graph is said by the finding
    torch.compiler.reset()
    try:
        call = torch.compile(whole, fullgraph=True, backend="aot_eager")
        found = subject.run(loss, batches, call=call)
    except Exception as error:
        yield _graph_breaks(subject, batches[0], error)
        yield Check("", "compiled value and gradient", "skipped", said="It does not compile in one graph.")
    else:
        yield _judged("graph breaks", 0, 0)
        yield _compared("compiled value and gradient", found, subject.reference(batches), subject.rounding)
    finally:
        torch.compiler.reset()
        logging.disable(level)


def _graph_breaks(subject: Subject, rows: Tensor, error: Exception) -> Check:
    said = f"With fullgraph=True it raised {describe_error(error)}."
    torch.compiler.reset()
    try:
        loss = subject.fresh(subject.exact)
        leaf = subject.scores[rows].detach().to(subject.exact).requires_grad_()
        targets = of_dtype(subject.targets[rows], leaf.dtype)
        explained = torch._dynamo.explain(subject.call)(loss, leaf, targets, rows)
    except Exception as other:
        return Check("", "graph breaks", "fail", said=f"{said} Explaining it raised {describe_error(other)}.")
    return Check("", "graph breaks", "fail", float(explained.graph_break_count), 0.0, said)


# ----------------------------------------------------------------------------------------------- what is remembered


def resume(subject: Subject) -> Iterator[Check]:
    """Save the state after some steps, load it into a fresh loss, go on, and compare bit by bit."""
    batches = subject.batches(8)
    whole = subject.run(subject.fresh(), batches, dtype=torch.float32)
    for stop in (1, 3, 6):
        case = f"saved after {stop} step{'s' if stop > 1 else ''}"

        def resumed(stop: int = stop, case: str = case) -> Check:
            first, second = subject.fresh(), subject.fresh()
            subject.run(first, batches[:stop], dtype=torch.float32)
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            second.load_state_dict(torch.load(file, weights_only=False, map_location=subject.scores.device))
            found = subject.run(second, batches[stop:], dtype=torch.float32)
            return _same(case, found, whole.after(stop))

        yield _tried(case, resumed)


def _same(case: str, found: Run, expected: Run) -> Check:
    if found.equals(expected):
        return _judged(case, 0.0, 0.0)
    error = max(*_errors(found, expected))
    return Check("", case, "fail", error, 0.0, "The two runs should be equal bit for bit.")


def undiluted_queue(subject: Subject) -> Iterator[Check]:
    """Deal a pool into four batches, remember three, rank the fourth, each in turn; compare with all of it live.

    Each row is live once, so the sum of the four gradients over four is the gradient of the pool, exactly.
    """
    case = "a quarter live, the rest remembered"
    remembering = _main(subject)
    size, remembers = len(subject.targets), False
    while size >= 16:
        parts = _parts(subject, size)
        whole = torch.cat(parts)
        expected = remembering.run(remembering.fresh(subject.exact), [whole])
        values, gradient = [], torch.zeros_like(expected.gradients[0])
        for last in range(4):
            order = [*parts[:last], *parts[last + 1 :], parts[last]]
            run = remembering.run(remembering.fresh(subject.exact), order)
            alone = remembering.run(remembering.fresh(subject.exact), [parts[last]])
            remembers = remembers or not torch.equal(run.values[-1], alone.values[-1])
            values.append(run.values[-1])
            gradient += run.gradients[-1] / 4
        if not remembers:
            yield _left_out(
                case, "It remembers no rows: the loss of a batch does not depend on earlier batches of other rows."
            )
            return
        if relative_error(values, expected.values * 4) <= math.sqrt(subject.rounding):
            wanted = expected.gradients[0]
            along = float((gradient * wanted).sum() / (wanted * wanted).sum())
            error = relative_error([gradient], [wanted])
            said = f"The gradient is {along:.4g} times that of the pool with every row live."
            yield _judged(f"{len(whole) // 4} of {len(whole)} rows live", error, 10 * subject.rounding, said)
            return
        size //= 2
    if isinstance(remembering.loss, RankingLoss):
        yield Check("", case, "fail", said="Live and remembered rows together do not give the value of their pool.")
    else:
        yield _left_out(case, "What it remembers is no queue of rows: they do not give the value of their pool.")


def _main(subject: Subject) -> Subject:
    # A schedule counts calls, which is no memory of rows.
    loss = subject.loss.main_loss if isinstance(subject.loss, LossWarmupWrapper) else subject.loss
    loss = copy.deepcopy(loss)
    if isinstance(loss, RankingLoss):
        loss.reset_queue()
    return replace(subject, loss=loss)


def _parts(subject: Subject, size: int) -> list[Tensor]:
    # Four batches of one size; those not of the most frequent kind dealt out evenly.
    generator = torch.Generator().manual_seed(subject.seed)
    rare, plain = (rows[torch.randperm(len(rows), generator=generator)] for rows in subject.rare_and_plain())
    ignored = getattr(subject.loss, "ignore_index", None)
    targets = subject.targets.cpu().reshape(len(subject.targets), -1)
    kept = torch.ones(len(targets), dtype=torch.bool) if ignored is None else (targets != ignored).all(1)
    rare, plain = rare[kept[rare]], plain[kept[plain]]
    few = rare[: max(4, len(rare) * size // len(targets))]
    chosen = torch.cat([few, plain[: size - len(few)]])
    chosen = chosen[: len(chosen) // 4 * 4]
    return [chosen[part::4].to(subject.scores.device) for part in range(4)]


def nan_poisoning(subject: Subject) -> Iterator[Check]:
    """Give a batch with a logit that is not finite, and then clean ones."""
    batches = subject.batches(4)
    for name, bad in (("a NaN", math.nan), ("an infinite", math.inf)):
        case = f"clean batches after {name} logit"

        def poisoned(bad: float = bad, case: str = case) -> Check:
            loss = subject.fresh()
            subject.run(loss, batches[:1], dtype=torch.float32)
            before = _nans(loss)
            scores = subject.scores.clone()
            first = scores[batches[0]]
            first.view(len(first), -1)[0, 0] = bad
            scores[batches[0]] = first
            refused = ""
            try:
                subject.run(loss, batches[:1], dtype=torch.float32, scores=scores)
            except Exception as error:
                refused = f" The batch itself was refused: {describe_error(error)}."
            after = subject.run(loss, [batches[0], *batches[1:]], dtype=torch.float32)
            broken = sum(not bool(torch.isfinite(tensor).all()) for pair in after for tensor in pair)
            kept = _nans(loss) - before
            said = (
                f"{broken} of {2 * len(batches)} values and gradients are not finite, and the state holds {kept} NaN."
            )
            return _judged(case, broken + kept, 0, (said if broken + kept else "") + refused)

        yield _tried(case, poisoned)


def _nans(loss: nn.Module) -> int:
    tensors = [value for value in loss.state_dict().values() if isinstance(value, Tensor) and value.is_floating_point()]
    return sum(int(torch.isnan(tensor).sum()) for tensor in tensors)


def padding(subject: Subject) -> Iterator[Check]:
    """Add rows that are absent, by ``ignore_index`` or by weight 0, and compare with the rows that are not."""
    yield from _ignored_rows(subject)
    case = "rows of weight 0"
    if subject.call is not call_plainly or "sample_weight" not in inspect.signature(subject.loss.forward).parameters:
        yield _left_out(case, "It takes no sample_weight, or is called in a way of its own.")
        return
    rows = len(subject.targets)

    def weighted(loss: nn.Module, logits: Tensor, targets: Tensor, places: Tensor) -> Tensor:
        weight = (places < rows).to(logits.dtype)
        try:
            value: Tensor = loss(logits, targets, sample_weight=weight)
        except ValueError:  # some want it in the shape of the logits
            value = loss(logits, targets, sample_weight=weight.view(-1, *[1] * (logits.ndim - 1)).expand_as(logits))
        return value

    try:
        yield _padded(subject, case, subject.targets[: _padding_rows(subject)], call=weighted)
    except TypeError as error:
        yield _left_out(case, f"It takes no sample_weight: {describe_error(error)}.")
    except Exception as error:
        yield _raised(case, error)


def _padding_rows(subject: Subject) -> int:
    return max(1, len(subject.targets) // 8)


def _ignored_rows(subject: Subject) -> Iterator[Check]:
    ignored = getattr(
        subject.loss, "ignore_index", getattr(getattr(subject.loss, "main_loss", None), "ignore_index", None)
    )
    case = "rows of ignore_index"
    if not isinstance(ignored, int):
        yield _left_out(case, "It has no ignore_index.")
        return
    plain = subject.targets if subject.targets.dtype != torch.bool else subject.targets.long()
    rows = torch.full_like(plain[: _padding_rows(subject)], ignored)
    yield _tried(case, lambda: _padded(replace(subject, targets=plain), case, rows))
    case = "rows of ignore_index that hold NaN"
    yield _tried(case, lambda: _padded(replace(subject, targets=plain), case, rows, score=math.nan))


def _padded(
    subject: Subject,
    case: str,
    absent: Tensor,
    *,
    score: float | None = None,
    call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Check:
    batches = subject.batches(3)
    expected = subject.reference(batches)
    extra = subject.scores[: len(absent)] if score is None else torch.full_like(subject.scores[: len(absent)], score)
    scores, targets = torch.cat([subject.scores, extra]), torch.cat([subject.targets, absent])
    places = torch.arange(len(subject.targets), len(targets), device=scores.device)
    generator = torch.Generator().manual_seed(subject.seed)
    longer = []
    for rows in batches:
        # In between the others, whose order stays: which of them a short queue keeps depends on it.
        at = torch.randint(len(rows) + 1, (len(places),), generator=generator).to(rows.device)
        longer.append(torch.cat([rows, places])[torch.cat([torch.arange(len(rows)).to(at) + 0.5, at]).argsort()])
    found = subject.run(subject.fresh(subject.exact), longer, scores=scores, targets=targets, call=call)
    none = torch.zeros_like(expected.gradients[0][: len(absent)])
    padded = Run(expected.values, [torch.cat([gradient, none]) for gradient in expected.gradients])
    return _compared(case, found, padded, subject.rounding)


def hygiene(subject: Subject) -> Iterator[Check]:
    """Copy, pickle and evaluate in the middle of a run, and compare what follows bit by bit."""
    batches = subject.batches(4)
    expected = subject.run(subject.fresh(), batches, dtype=torch.float32).after(2)

    def going_on(case: str, between: Callable[[nn.Module], nn.Module]) -> Check:
        loss = subject.fresh()
        subject.run(loss, batches[:2], dtype=torch.float32)
        return _same(case, subject.run(between(loss), batches[2:], dtype=torch.float32), expected)

    def evaluated(loss: nn.Module) -> nn.Module:
        loss.eval()
        with torch.no_grad():
            subject.call(loss, subject.scores[batches[3]], subject.targets[batches[3]], batches[3])
        return loss.train()

    def pickled(loss: nn.Module) -> nn.Module:
        copied: nn.Module = pickle.loads(pickle.dumps(loss))
        return copied

    yield _tried("deepcopy", lambda: going_on("deepcopy", copy.deepcopy))
    yield _tried("pickle", lambda: going_on("pickle", pickled))
    case = "a call in eval mode leaves the state alone"
    if getattr(subject.loss, "queue_in_eval", False):
        yield _left_out(case, "It was made with queue_in_eval=True.")
    else:
        yield _tried(case, lambda: going_on(case, evaluated))


# ---------------------------------------------------------------------------------- speed, and the operating point


def syncs(subject: Subject) -> Iterator[Check]:
    """Count how often a training step on a GPU makes the host wait."""
    case = "waits of the host in a step"
    if subject.scores.device.type != "cuda":
        yield Check("", case, "skipped", said=f"The device is {subject.scores.device}, no GPU.")
        return
    batches = [rows.to(subject.scores.device) for rows in subject.batches(2)]
    loss = subject.fresh()
    subject.run(loss, batches[:1], dtype=torch.float32)
    rows = batches[1]
    leaf = subject.scores[rows].detach().float().requires_grad_()
    targets = of_dtype(subject.targets[rows], leaf.dtype)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            subject.call(loss, leaf, targets, rows).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    yield _judged(case, sum("synchron" in str(warning.message).lower() for warning in caught), 0)


def support(subject: Subject) -> Iterator[Check]:
    """Ask ``diagnose`` whether the pool, with the queue filled, supports the operating point."""
    case = "rows behind the operating point"
    main = _main(subject)
    loss = main.fresh(main.exact)
    if not isinstance(loss, RankingLoss) or subject.call is not call_plainly:
        yield _left_out(case, "It has no diagnose that says how many rows it needs.")
        return
    with torch.no_grad():
        for _ in range(-(-loss.queue.size // max(1, len(subject.targets)))):
            loss(subject.scores, subject.targets)
    seen = loss.diagnose(subject.scores, subject.targets)  # type: ignore[operator]
    present = seen["positives_pool"] > 0
    if not bool(present.any()):
        yield _left_out(case, "No class has positives in this batch.")
        return
    rows, needed = float(seen["support"][present].min()), float(seen["support_needed"].max())
    said = (
        f"{rows:.4g} rows of a pool of {int(seen['rows_pool'].max())} stand behind the operating point of a class, "
        f"{needed:.4g} are needed: use a larger batch or queue_size, or a wider point."
    )
    passed = bool(seen["supported"][present].all())
    yield Check("", case, "pass" if passed else "fail", rows, needed, "" if passed else said)


PROMISES = (
    Promise(
        "oracle",
        "The number that is minimised is not the loss as it is defined, so training settles somewhere else.",
        oracle,
    ),
    Promise(
        "ranks",
        "Several processes take other steps than one: a learning rate found on one does not carry over.",
        ranks,
    ),
    Promise("chunks", "The gradient of a batch depends on how it was cut to fit into memory.", chunks),
    Promise("row order", "The loss depends on how the loader happens to order rows, which is noise.", row_order),
    Promise(
        "precision",
        "Mixed precision stops, or follows another gradient than float32 does on the same logits.",
        precision,
    ),
    Promise("compile", "Under torch.compile the loss splits the graph, or is another one than without.", compiled),
    Promise(
        "resume", "A run that is interrupted and resumed goes on from another state, and cannot be repeated.", resume
    ),
    Promise(
        "undiluted queue",
        "The longer the queue, the smaller the step: the queue silently lowers the learning rate.",
        undiluted_queue,
    ),
    Promise(
        "NaN poisoning",
        "One overflow, which an AMP scaler would skip, ruins the steps after it, or all of them.",
        nan_poisoning,
    ),
    Promise("padding", "Rows that should not count change what is learned from the others.", padding),
    Promise("syncs", "The GPU idles while the host waits for a number in every step.", syncs),
    Promise("support", "Too few rows decide the threshold, so the gradient is mostly noise.", support),
    Promise("hygiene", "A copy, a worker process or a validation pass changes the training that follows.", hygiene),
)
