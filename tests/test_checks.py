"""Bad input ends with one clear error that says what came, before any state changes."""

import copy
import inspect
import pydoc
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rareloss import (
    LossWarmupWrapper,
    Objective,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
    functional,
    metrics,
)
from test_pool import LOSSES, every_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*are needed for a stable gradient:UserWarning")

ROWS, FLAGS = torch.zeros(4), torch.tensor([True, False, False, True])


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: SmoothAPLoss(0), ValueError, "num_classes"),
        (lambda: SmoothAPLoss(1.5), TypeError, "num_classes"),
        (lambda: SmoothAPLoss(True), TypeError, "num_classes"),
        (lambda: SmoothAPLoss(1, queue_size=-1), ValueError, "queue_size"),
        (lambda: SmoothAPLoss(1, queue_size=10.0), TypeError, "queue_size"),
        (lambda: SmoothAPLoss(1, temperature=0.0), ValueError, "temperature"),
        (lambda: SmoothAPLoss(1, temperature=float("nan")), ValueError, "temperature"),
        (lambda: SmoothAPLoss(1, temperature="low"), TypeError, "temperature"),
        (lambda: SmoothAPLoss(1, temperature_unit="spread"), ValueError, "spread"),
        (lambda: SmoothAPLoss(1, reduction="average"), ValueError, "average"),
        (lambda: RecallAtQuantileLoss(1, 0.0), ValueError, "quantile"),
        (lambda: RecallAtQuantileLoss(1, 1.0), ValueError, "quantile"),
        (lambda: RecallAtQuantileLoss(1, 5), ValueError, "quantile"),
        (lambda: RecallAtQuantileLoss(1, "5%"), TypeError, "quantile"),
        (lambda: RecallAtQuantileLoss(1, 0.1, "positives"), ValueError, "positives"),
        (lambda: RecallAtQuantileLoss(1, 0.1, reduction="mean_positive"), ValueError, "mean_positive"),
        (lambda: PAUCAtBudgetLoss(1, 0.5, 0.5), ValueError, "alpha"),
        (lambda: PAUCAtBudgetLoss(1, -0.1, 0.5), ValueError, "alpha"),
        (lambda: PAUCAtBudgetLoss(1, beta=1.5), ValueError, "beta"),
        (lambda: PAUCAtBudgetLoss(1, beta=0.1, temperature=-1.0), ValueError, "temperature"),
        (lambda: SigmoidFocalLoss(alpha=1.5), ValueError, "alpha"),
        (lambda: SigmoidFocalLoss(alpha=-0.1), ValueError, "alpha"),
        (lambda: SigmoidFocalLoss(gamma=-1.0), ValueError, "gamma"),
        (lambda: SigmoidFocalLoss(gamma="2"), TypeError, "gamma"),
        (lambda: SigmoidFocalLoss(reduction="avg"), ValueError, "avg"),
        (lambda: SoftmaxFocalLoss(alpha=[1.0, -1.0]), ValueError, "alpha"),
        (lambda: SoftmaxFocalLoss(label_smoothing=1.5), ValueError, "label_smoothing"),
        (lambda: SoftmaxFocalLoss(gamma=float("inf")), ValueError, "gamma"),
        (lambda: SoftmaxFocalLoss(reduction="batchmean"), ValueError, "batchmean"),
        (lambda: Objective.parse("recall"), ValueError, "recall"),
        (lambda: SmoothAPLoss(1, gather_distributed="yes"), TypeError, "gather_distributed must be True or False"),
        (lambda: SmoothAPLoss(1, queue_in_eval="yes"), TypeError, "queue_in_eval must be True or False"),
        (lambda: SmoothAPLoss(1, check_values=1), TypeError, "check_values must be True or False"),
        (lambda: SmoothAPLoss(1, persistent_queue=0), TypeError, "persistent_queue must be True or False"),
        (lambda: SmoothAPLoss(1, process_group="gloo"), TypeError, "process_group must be"),
        (lambda: SigmoidFocalLoss(process_group=3), TypeError, "process_group must be"),
        (lambda: SoftmaxFocalLoss(alpha=[1.0, 2.0], background_class=2), ValueError, "one of the 2 classes of alpha"),
    ],
)
def test_constructor_refuses(make: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize(
    "function",
    [
        functional.smooth_average_precision,
        functional.soft_recall_at_quantile,
        functional.soft_partial_auc,
        metrics.average_precision,
        metrics.recall_at_quantile,
        metrics.recall_at_fpr,
        metrics.partial_auc,
    ],
)
@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ((ROWS.long(), FLAGS), TypeError, "scores.*int64"),
        (([0.0, 1.0], FLAGS), TypeError, "scores.*list"),
        ((ROWS, FLAGS.long()), TypeError, "positive.*bool"),
        ((ROWS, FLAGS[:3]), ValueError, r"positive.*\(3,\)"),
        ((ROWS[:, None], FLAGS), ValueError, r"positive.*\(4,\)"),
        ((ROWS.reshape(1, 2, 2), FLAGS.reshape(1, 2, 2)), ValueError, r"\(1, 2, 2\)"),
        ((torch.tensor(0.0), torch.tensor(True)), ValueError, r"scores"),
        ((ROWS, FLAGS, torch.ones(3)), ValueError, r"weight.*\(3,\)"),
        ((ROWS, FLAGS, torch.ones(4, 1)), ValueError, r"weight.*\(4, 1\)"),
        ((ROWS, FLAGS, torch.tensor([1.0, -1.0, 1.0, 1.0])), ValueError, "weight.*-1"),
        ((ROWS, FLAGS, torch.tensor([1.0, float("nan"), 1.0, 1.0])), ValueError, "weight.*nan"),
        ((ROWS, FLAGS, torch.tensor([1.0, float("inf"), 1.0, 1.0])), ValueError, "weight.*inf"),
    ],
)
def test_ranking_function_refuses(
    function: Callable[..., Any], given: tuple[Any, ...], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        function(*given)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: functional.soft_recall_at_quantile(ROWS, FLAGS, quantile=0.0), ValueError, "quantile"),
        (lambda: functional.soft_recall_at_quantile(ROWS, FLAGS, among="some"), ValueError, "some"),
        (lambda: functional.soft_recall_at_quantile(ROWS, FLAGS, temperature=0), ValueError, "temperature"),
        (lambda: functional.soft_recall_at_quantile(ROWS, FLAGS, iid_mask=ROWS), TypeError, "iid_mask"),
        (lambda: functional.soft_recall_at_quantile(ROWS, FLAGS, iid_mask=FLAGS[:2]), ValueError, "iid_mask"),
        (lambda: functional.soft_partial_auc(ROWS, FLAGS, alpha=0.2, beta=0.1), ValueError, "alpha"),
        (lambda: functional.soft_partial_auc(ROWS, FLAGS, iid_mask=FLAGS.long()), TypeError, "iid_mask"),
        (lambda: functional.smooth_average_precision(ROWS, FLAGS, temperature=-1), ValueError, "temperature"),
        (lambda: metrics.recall_at_fpr(ROWS, FLAGS, fpr=1.0), ValueError, "fpr"),
        (lambda: metrics.recall_at_quantile(ROWS, FLAGS, quantile=1.2), ValueError, "quantile"),
        (lambda: metrics.partial_auc(ROWS, FLAGS, beta=0.0), ValueError, "beta"),
        (lambda: functional.soft_count(ROWS, ROWS, temperature=0.0), ValueError, "temperature"),
        (lambda: functional.soft_count(ROWS, torch.ones(5), temperature=1.0), ValueError, r"\(5,\)"),
        (lambda: functional.soft_count(ROWS.long(), ROWS, temperature=1.0), TypeError, "scores"),
        (lambda: functional.soft_count(ROWS, [1.0] * 4, temperature=1.0), TypeError, "weights"),  # type: ignore[arg-type]
        (lambda: functional.soft_count(ROWS, None, temperature=1.0), TypeError, "weights"),  # type: ignore[arg-type]
        (lambda: functional.soft_count(ROWS, ROWS, at=torch.zeros(2, 2), temperature=1.0), ValueError, "at"),
        (lambda: functional.log_odds(torch.zeros(3, 1)), ValueError, r"\(3, 1\)"),
        (lambda: functional.log_odds(torch.zeros(3, 2).long()), TypeError, "logits"),
    ],
)
def test_function_refuses(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def focal_calls() -> list[Any]:
    z, y = torch.zeros(4, 3), torch.zeros(4, 3)
    classes = torch.zeros(4, dtype=torch.long)
    sigmoid, softmax = functional.sigmoid_focal_loss, functional.softmax_focal_loss
    return [
        (lambda: sigmoid(z.long(), y), TypeError, "logits"),
        (lambda: sigmoid(z, y[:3]), ValueError, r"\(3, 3\)"),
        (lambda: sigmoid(z, classes), ValueError, r"\(4,\)"),
        (lambda: sigmoid(z[:, 0], y[:1, 0]), ValueError, r"\(1,\)"),
        (lambda: sigmoid(z[:, :1], y[:, 0].reshape(2, 2)), ValueError, r"\(2, 2\)"),
        (lambda: sigmoid(z, y + 2), ValueError, "2"),
        (lambda: sigmoid(z, y + 0.5), ValueError, "0.5"),
        (lambda: sigmoid(z, y, weight=torch.ones(3)), ValueError, "weight"),
        (lambda: sigmoid(z, y, weight=-torch.ones(4)), ValueError, "weight"),
        (lambda: sigmoid(z, y, alpha=2.0), ValueError, "alpha"),
        (lambda: sigmoid(z, y, alpha=torch.ones(2)), ValueError, "alpha"),
        (lambda: sigmoid(z, y, reduction="avg"), ValueError, "avg"),
        (lambda: softmax(z, classes + 3), ValueError, "3"),
        (lambda: softmax(z, classes - 1), ValueError, "-1"),
        (lambda: softmax(z, classes[:3]), ValueError, r"\(3,\)"),
        (lambda: softmax(z, y), ValueError, r"\(4, 3\)"),
        (lambda: softmax(z, classes, alpha=[1.0, 2.0]), ValueError, "alpha"),
        (lambda: softmax(z, classes, weight=torch.ones(4, 3)), ValueError, "weight"),
        (lambda: softmax(z, classes, weight=torch.full((4,), torch.nan)), ValueError, "weight"),
        (lambda: softmax(z, classes, gamma=-0.5), ValueError, "gamma"),
        (lambda: softmax(z.long(), classes), TypeError, "logits"),
        (lambda: softmax(z, "cat"), TypeError, "targets"),
    ]


@pytest.mark.parametrize(("call", "error", "said"), focal_calls())
def test_focal_function_refuses(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def refused(classes: int) -> list[tuple[dict[str, Any], type[Exception], str]]:
    """Return what a loss of so many classes must refuse."""
    good: dict[str, Any] = {
        "logits": torch.randn(8, classes),
        "targets": torch.arange(8) % max(classes, 2),
        "sample_weight": torch.ones(8),
    }

    def bad(**changed: Any) -> dict[str, Any]:
        return {**good, **changed}

    cases = [
        (bad(logits=torch.zeros(8, classes).long()), TypeError, "logits.*int64"),
        (bad(logits=[0.0] * 8), TypeError, "logits.*list"),
        (bad(targets=[0] * 8), TypeError, "targets.*list"),
        (bad(targets=torch.zeros(7)), ValueError, r"\(7,\)"),
        (bad(logits=torch.zeros(8, classes + 1)), ValueError, rf"\(8, {classes + 1}\)"),
        (bad(targets=torch.full((8,), 9)), ValueError, "9"),
        (bad(targets=torch.full((8,), -1)), ValueError, "-1"),
        (bad(targets=torch.full((8,), 0.5)), ValueError, "0.5"),
        (bad(targets=torch.zeros(8, dtype=torch.complex64)), TypeError, "complex"),
        (bad(sample_weight=torch.ones(7)), ValueError, r"sample_weight.*\(7,\)"),
        (bad(sample_weight=torch.ones(8, classes + 1)), ValueError, "sample_weight"),
        (bad(sample_weight=-torch.ones(8)), ValueError, "sample_weight.*-1"),
        (bad(sample_weight=torch.full((8,), torch.nan)), ValueError, "sample_weight.*nan"),
        (bad(sample_weight=[1.0] * 8), TypeError, "sample_weight.*list"),
    ]
    if classes > 1:
        cases.append((bad(targets=torch.zeros(8, classes + 1)), ValueError, "targets"))
        cases.append((bad(targets=torch.full((8, classes), 2)), ValueError, "2"))
    return cases


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
def test_loss_refuses_before_any_state_changes(name: str, classes: int) -> None:
    loss = LOSSES[name](classes, queue_size=32)
    targets = torch.arange(8) % max(classes, 2)
    loss(torch.randn(8, classes), targets)
    before = copy.deepcopy(loss.state_dict())
    for given, error, said in refused(classes):
        for call in (loss, loss.diagnose):
            with pytest.raises(error, match=said):
                call(given["logits"], given["targets"], sample_weight=given["sample_weight"])
        for key, buffer in loss.state_dict().items():
            assert torch.equal(buffer, before[key])
    if name != "ap":
        for mask, error in ((torch.ones(8), TypeError), (torch.ones(7, dtype=torch.bool), ValueError)):
            with pytest.raises(error, match="iid_mask"):
                loss(torch.randn(8, classes), targets, iid_mask=mask)


def test_average_precision_takes_no_iid_mask() -> None:
    with pytest.raises(TypeError, match="iid_mask"):
        SmoothAPLoss(1)(torch.randn(8, 1), torch.arange(8) % 2, iid_mask=torch.ones(8, dtype=torch.bool))


@every_loss
def test_transposed_logits_are_never_broadcast(name: str) -> None:
    for logits, targets in ((torch.zeros(1, 8), torch.zeros(8)), (torch.zeros(8), torch.zeros(1, 8))):
        with pytest.raises(ValueError, match="shape"):
            LOSSES[name](1)(logits, targets)


@pytest.mark.parametrize("loss", [SigmoidFocalLoss(), SoftmaxFocalLoss()])
def test_focal_module_refuses(loss: nn.Module) -> None:
    logits, targets = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    if isinstance(loss, SigmoidFocalLoss):
        targets = torch.zeros(4, 3)
    wrong: list[tuple[Any, Any, Tensor | None, type[Exception]]] = [
        (logits.long(), targets, None, TypeError),
        (logits, targets + 7, None, ValueError),
        (logits, targets[:2], None, ValueError),
        (logits, targets, torch.ones(3), ValueError),
        (logits, targets, -torch.ones(4), ValueError),
    ]
    for first, second, weight, error in wrong:
        with pytest.raises(error):
            loss(first, second, sample_weight=weight)


@pytest.mark.parametrize("check_values", [None, False, True])
def test_values_are_always_looked_at_on_the_cpu(check_values: bool | None) -> None:
    # There looking is free; check_values only adds devices that would wait for the host.
    weight = torch.ones(8)
    weight[0] = -1.0
    loss = SmoothAPLoss(1, check_values=check_values)
    with pytest.raises(ValueError, match="sample_weight"):
        loss(torch.randn(8), torch.arange(8) % 2, sample_weight=weight)
    with pytest.raises(ValueError, match="targets"):
        loss(torch.randn(8), torch.arange(8))


def test_values_are_not_looked_at_where_there_are_none() -> None:
    # On the meta device there is shape and nothing else.
    logits, targets = torch.randn(8, device="meta"), torch.zeros(8, dtype=torch.long, device="meta")
    assert SmoothAPLoss(1, queue_size=0)(logits, targets).shape == ()
    with pytest.raises(ValueError, match="shape"):
        SmoothAPLoss(1)(logits, targets[:7])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"warmup_steps": -1}, ValueError, "warmup_steps"),
        ({"warmup_steps": 1.5}, TypeError, "warmup_steps"),
        ({"warmup_steps": 1, "blend_steps": -1}, ValueError, "blend_steps"),
        ({"warmup_steps": 1, "temp_start": 0.5}, ValueError, "temp_end"),
        ({"warmup_steps": 1, "temp_end": 0.5}, ValueError, "temp_start"),
        ({"warmup_steps": 1, "temp_start": 0.5, "temp_end": 0.0}, ValueError, "temp_end"),
        (
            {"warmup_steps": 1, "temp_start": 0.5, "temp_end": 0.1, "temp_decay_steps": 0},
            ValueError,
            "temp_decay_steps",
        ),
        ({"warmup_steps": 1, "final_main_weight": 0.0}, ValueError, "final_main_weight"),
        ({"warmup_steps": 1, "final_main_weight": 1.5}, ValueError, "final_main_weight"),
    ],
)
def test_warmup_refuses(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(1), **options)


def test_warmup_refuses_what_is_no_module() -> None:
    with pytest.raises(TypeError, match="warmup_loss"):
        LossWarmupWrapper(torch.nn.functional.binary_cross_entropy_with_logits, SmoothAPLoss(1), warmup_steps=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature"):
        LossWarmupWrapper(nn.BCEWithLogitsLoss(), SigmoidFocalLoss(), warmup_steps=1, temp_start=0.5, temp_end=0.1)


def test_ignore_index_that_the_targets_cannot_hold_ignores_no_class() -> None:
    # As uint8, -100 is 156: a class like any other.
    logits = torch.randn(200, 200)
    targets = torch.arange(200)
    losses: list[nn.Module] = [
        SmoothAPLoss(200, queue_size=0, reduction="none"),
        SoftmaxFocalLoss(reduction="none"),
        SoftmaxFocalLoss(),
        LossWarmupWrapper(nn.CrossEntropyLoss(), SmoothAPLoss(200, queue_size=0), warmup_steps=9),
    ]
    for loss in losses:
        found, expected = loss(logits, targets.to(torch.uint8)), loss(logits, targets)
        assert torch.equal(found.nan_to_num(9.0), expected.nan_to_num(9.0))
    for kind in (torch.uint8, torch.int8):
        with pytest.raises(ValueError, match="targets"):
            SmoothAPLoss(3, ignore_index=511)(logits[:1, :3], torch.tensor([-1]).to(kind))


def test_warmup_ignores_what_unsigned_targets_can_hold() -> None:
    logits, targets = torch.randn(4, 200), torch.tensor([3, 255, 156, 7])
    loss = LossWarmupWrapper(nn.CrossEntropyLoss(), SmoothAPLoss(200, ignore_index=255), warmup_steps=9)
    assert loss(logits, targets.to(torch.uint8)) == loss(logits, targets)
    kept = torch.tensor([0, 2, 3])
    torch.testing.assert_close(loss(logits, targets), nn.functional.cross_entropy(logits[kept], targets[kept]))


@pytest.mark.parametrize("stored", [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn])
def test_dtypes_that_torch_only_stores_are_refused(stored: torch.dtype) -> None:
    zeros, rows = torch.zeros(4).to(stored), torch.randn(4)
    binary = [
        SmoothAPLoss(1),
        SigmoidFocalLoss(),
        LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(1), warmup_steps=1),
    ]
    for loss in binary:
        with pytest.raises(TypeError, match=rf"targets.*{stored}"):
            loss(rows, zeros)
        with pytest.raises(TypeError, match=rf"logits.*{stored}"):
            loss(zeros, rows > 0)
    with pytest.raises(TypeError, match=rf"sample_weight.*{stored}"):
        SmoothAPLoss(1)(rows, rows > 0, sample_weight=zeros)
    for loss in (SmoothAPLoss(3), SoftmaxFocalLoss()):
        with pytest.raises(TypeError, match=rf"targets.*{stored}"):
            loss(torch.randn(4, 3), zeros)


@pytest.mark.parametrize(
    "call",
    [
        lambda: SmoothAPLoss(1, ignore_index=-1.5),
        lambda: SigmoidFocalLoss(ignore_index="-100"),
        lambda: SoftmaxFocalLoss(background_class=None),
        lambda: functional.sigmoid_focal_loss(torch.zeros(2), torch.zeros(2), ignore_index="-100"),
        lambda: functional.softmax_focal_loss(torch.zeros(2, 3), torch.zeros(2).long(), ignore_index=1.5),
        lambda: functional.softmax_focal_loss(torch.zeros(2, 3), torch.zeros(2).long(), background_class="0"),
    ],
)
def test_indices_that_are_no_whole_numbers_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="must be a whole number"):
        call()


PUBLIC: list[type[nn.Module]] = [
    SmoothAPLoss,
    RecallAtQuantileLoss,
    PAUCAtBudgetLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    LossWarmupWrapper,
]


@pytest.mark.parametrize("public", PUBLIC)
def test_help_shows_every_argument_and_says_what_it_is(public: type[nn.Module]) -> None:
    arguments = inspect.signature(public).parameters
    kinds = {argument.kind for argument in arguments.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    said = inspect.getdoc(public) or ""
    section = said.partition("\nArgs:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^    (\w+): ", section, re.MULTILINE) == list(arguments)
    shown = pydoc.render_doc(public, renderer=pydoc.plaintext)
    assert all(f"{name}:" in shown.partition("Method resolution order")[0] for name in arguments)


@pytest.mark.parametrize("public", PUBLIC)
def test_unknown_keyword_is_answered_with_the_nearest(public: Callable[..., nn.Module]) -> None:
    given = {"warmup_loss": nn.BCEWithLogitsLoss(), "main_loss": SmoothAPLoss(1), "warmup_steps": 1, "num_classes": 1}
    arguments = list(inspect.signature(public).parameters)
    options = {name: value for name, value in given.items() if name in arguments}
    for name in arguments:
        with pytest.raises(TypeError, match=rf"takes no argument '{name}s' \(did you mean {name}\?\), only "):
            public(**options, **{f"{name}s": 1})
    with pytest.raises(TypeError, match=r"takes no argument 'qqq', only "):
        public(**options, qqq=1)


def test_objective_answers_for_the_loss_that_it_makes() -> None:
    with pytest.raises(TypeError, match=r"RecallAtQuantileLoss .* 'queuesize' \(did you mean queue_size\?\)"):
        Objective.parse("recall@top=5%").loss(1, queuesize=3)


@pytest.mark.parametrize("loss", [SmoothAPLoss(3), SigmoidFocalLoss(), SoftmaxFocalLoss()])
@pytest.mark.parametrize(
    "weight", [torch.ones(7), -torch.ones(4), torch.full((4,), torch.nan), [1.0] * 4, torch.ones(4) * 1j]
)
def test_every_loss_refuses_a_weight_by_the_name_that_it_was_given(loss: nn.Module, weight: Any) -> None:
    targets = torch.zeros(4, 3) if isinstance(loss, SigmoidFocalLoss) else torch.arange(4) % 3
    for called in (loss, LossWarmupWrapper(loss, SmoothAPLoss(3), warmup_steps=3)):
        with pytest.raises((TypeError, ValueError), match=r"^sample_weight must"):
            called(torch.zeros(4, 3), targets, sample_weight=weight)


class Deep(nn.Module):
    """A loss that torch calls from a module, through a hook and a container."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = nn.ModuleList([loss])
        loss.register_forward_hook(lambda *_: None)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.loss[0](logits, targets)
        return value


WARNED: dict[str, Callable[[], nn.Module]] = {
    "support": lambda: RecallAtQuantileLoss(1, 0.001, queue_size=0),
    "support of a band": lambda: PAUCAtBudgetLoss(1, beta=0.001, queue_size=0),
    "nothing": lambda: SmoothAPLoss(1, ignore_index=7),
    "within a warm-up": lambda: LossWarmupWrapper(
        nn.BCEWithLogitsLoss(), SmoothAPLoss(1, ignore_index=7), warmup_steps=0
    ),
}


def warnings_of(call: Callable[[], Any], times: int = 3) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            call()
    return caught


@pytest.mark.parametrize("name", WARNED)
@pytest.mark.parametrize("deep", [False, True])
def test_warning_comes_once_and_points_at_the_line_that_called(name: str, deep: bool) -> None:
    loss = WARNED[name]()
    called = Deep(loss) if deep else loss
    logits, targets = torch.randn(40), torch.full((40,), 7)
    if name.startswith("support"):
        targets = (torch.arange(40) % 4 == 0).long()
    (warning,) = warnings_of(lambda: called(logits, targets))  # this line, or the one in Deep
    lines = Path(warning.filename).read_text(encoding="utf-8").splitlines()
    assert (
        lines[warning.lineno - 1]
        .strip()
        .endswith("self.loss[0](logits, targets)" if deep else "# this line, or the one in Deep")
    )


@pytest.mark.parametrize("name", LOSSES)
def test_batch_without_weight_warns_once_and_teaches_nothing(name: str) -> None:
    loss = LOSSES[name](1, queue_size=64)
    logits, targets = torch.randn(40, requires_grad=True), torch.arange(40) % 4 == 0
    (warning,) = warnings_of(lambda: loss(logits, targets, sample_weight=torch.zeros(40)).backward())
    assert re.search("every row of this batch has weight 0 .* nothing is learned", str(warning.message))
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0
    assert loss.queue.weight.count_nonzero() == 0
