"""Break what stands around the core on purpose, one line at a time, and see that a test notices.

``python -m tests.wing_mutations`` does to ``table/``, ``decisions/``, ``tabular/`` and ``cli/`` what
``python -m tests.native_mutations`` does to the kernel, with the tests that stand beside each change. It prints, for
each, the first test that failed, or SURVIVED. ``--only NAME`` tries one change.
"""

import sys

from tests.native_mutations import Mutation, try_all

_DATA, _FOLDS = "tests/tabular/test_data.py", "tests/tabular/test_folds.py"
_REPORT, _THRESHOLDS = "tests/test_score_report.py", "tests/decisions/test_thresholds.py"
_FIT, _PROFILE = "tests/tabular/model/test_fit.py", "tests/tabular/model/test_profile.py"

MUTATIONS = (
    Mutation(
        "the report's lower bound of average precision .01 % too low",
        "rareloss/decisions/reporting/page.py",
        '"bound_low": min(low, value)',
        '"bound_low": min(low, value) * (1 - 1e-4)',
        (f"{_REPORT}::test_average_precision_is_exact_where_all_scores_of_positives_are_kept",),
    ),
    Mutation(
        "rows of a csv with more fields than its header passed over",
        "rareloss/table/text_file.py",
        "newlines_in_values=True)",
        'newlines_in_values=True, invalid_row_handler=lambda row: "skip")',
        (f"{_DATA}::TestFiles::test_a_broken_file_is_refused",),
    ),
    Mutation(
        "copies common from 2 on",
        "rareloss/table/table.py",
        "size[code] > max(2, MOST_COPIES * len(rows))",
        "size[code] > max(1, MOST_COPIES * len(rows))",
        (f"{_DATA}::TestGroupsAndTime",),
    ),
    Mutation(
        "copies common from 3 on, however many rows there are",
        "rareloss/table/table.py",
        "max(2, MOST_COPIES * len(rows))",
        "2",
        (f"{_DATA}::TestGroupsAndTime",),
    ),
    Mutation(
        "no shuffle within a stratum of a split",
        "rareloss/table/folds.py",
        "rng.permutation(np.flatnonzero(rarest == stratum))",
        "np.flatnonzero(rarest == stratum)",
        (f"{_FOLDS}::test_rows_that_stand_together_are_tested_together_as_often_as_any_others",),
    ),
    Mutation(
        "trees compared with each method as if it were the only one",
        "rareloss/tabular/comparison/statistics.py",
        "test_over_train=test_over_train, comparisons=len(others)\n        )\n        for method",
        "test_over_train=test_over_train\n        )\n        for method",
        ("tests/tabular/test_statistics.py",),
    ),
    Mutation(
        "trees compared as if no two splits shared a row",
        "rareloss/tabular/comparison/statistics.py",
        "test_over_train=test_over_train, comparisons=len(others)\n        )\n        for method",
        "test_over_train=0.0, comparisons=len(others)\n        )\n        for method",
        ("tests/tabular/test_statistics.py",),
    ),
    Mutation(
        "failed units of a resumed comparison taken over",
        "rareloss/tabular/comparison/runs.py",
        'return None if unit["failed"] else unit',
        "return unit",
        ("tests/tabular/test_comparison.py::test_a_unit_in_which_a_method_failed_is_run_again",),
    ),
    Mutation(
        "the stored threshold at the highest score below it",
        "rareloss/tabular/model/fitting.py",
        "(float(above.min()) - threshold) / 2",
        "(float(above.min()) - threshold) * 0",
        (f"{_FIT}::test_every_number_of_the_card_is_found_again_from_the_written_scores",),
    ),
    Mutation(
        "the stored threshold a quarter of the way to the next score",
        "rareloss/tabular/model/fitting.py",
        "(float(above.min()) - threshold) / 2",
        "(float(above.min()) - threshold) / 4",
        (f"{_FIT}::test_every_number_of_the_card_is_found_again_from_the_written_scores",),
    ),
    Mutation(
        "drift judged by one old row above too few",
        "rareloss/decisions/drift.py",
        "betabinom(m, above + 1, max(n - above, 1))",
        "betabinom(m, max(above, 1), max(n - above, 1))",
        (f"{_THRESHOLDS}::test_drift_is_told_at_one_percent_of_the_exact_chance",),
    ),
    Mutation(
        "the recall at all cuts as if its interval were of one side",
        "rareloss/decisions/intervals.py",
        "np.log(2 / (1 - confidence))",
        "np.log(1 / (1 - confidence))",
        ("tests/decisions/test_intervals.py",),
    ),
    Mutation(
        "a calibrator's shift of a sample of the negatives the wrong way",
        "rareloss/decisions/calibration.py",
        "return math.log(rate)",
        "return -math.log(rate)",
        ("tests/test_calibration.py::test_a_sample_of_the_negatives_is_undone",),
    ),
    Mutation(
        "the report opens at the fewest alerts of a precision, not the most",
        "rareloss/decisions/reporting/page.py",
        "return int(enough[-1])",
        "return int(enough[0])",
        (f"{_REPORT}::test_page_opens_where_the_objective_says",),
    ),
    Mutation(
        "the report's first threshold alerts the highest score",
        "rareloss/decisions/reporting/stream.py",
        "lowest_alert(max(more, self.most), self.least)",
        "max(more, self.most)",
        (f"{_REPORT}::test_page_opens_where_nobody_is_alerted_if_that_is_cheapest",),
    ),
    Mutation(
        "few rows of a category say what the next will be",
        "rareloss/table/leakage.py",
        "    share[rows < LEAST_ROWS_OF_A_CATEGORY] = positives / len(target)\n",
        "",
        (f"{_DATA}::TestAlone",),
    ),
    Mutation(
        "groups of a later part left in an earlier one",
        "rareloss/table/folds.py",
        "np.where(part == last[group], part, OUTSIDE)",
        "part",
        (f"{_FOLDS}::test_groups_of_a_later_part_are_dropped_from_an_earlier_one",),
    ),
    Mutation(
        "an amount in parentheses above 0",
        "rareloss/table/numbers.py",
        'f"[{_MINUS}(]"',
        'f"[{_MINUS}]"',
        (f"{_DATA}::TestFeatures::test_amounts_are_numbers_however_they_are_written",),
    ),
    Mutation(
        "the row's own weight left out where it was drawn with one",
        "rareloss/tabular/training.py",
        "weight = own[places] if weight is None else weight * own[places]",
        "weight = weight if weight is not None else own[places]",
        ("tests/tabular/test_weights.py::test_a_step_multiplies_the_weights_of_row_draw_and_class",),
    ),
    Mutation(
        "of trees one round more than validation chose",
        "rareloss/tabular/training.py",
        "Trees.of(model, rounds)",
        "Trees.of(model, rounds + 1)",
        ("tests/tabular/test_methods.py::test_trees_keep_the_round_that_validation_prefers",),
    ),
    Mutation(
        "the best on validation deployed, however much simpler the next is",
        "rareloss/tabular/comparison/choice.py",
        "means[name] >= means[best] - error",
        "means[name] >= means[best]",
        (f"{_FIT}::test_the_simplest_network_within_a_standard_error_is_taken",),
    ),
    Mutation(
        "the fit's median of a feature without its weights",
        "rareloss/tabular/model/profile.py",
        'weights=weight[~gone], method="inverted_cdf"',
        'method="inverted_cdf"',
        (f"{_PROFILE}::test_weighted_rows_are_profiled_by_weight",),
    ),
    Mutation(
        "the printed report at a threshold of six digits",
        "rareloss/cli/model.py",
        "repr(loaded.threshold)",
        'f"{loaded.threshold:.6g}"',
        (f"{_PROFILE}::test_the_printed_report_has_the_alerts_of_the_model",),
    ),
    Mutation(
        "a check's own threshold gives way to the model's",
        "rareloss/cli/report.py",
        "threshold = own if threshold is None else threshold",
        "threshold = own",
        (f"{_PROFILE}::test_check_takes_a_model_for_the_scores_of_its_fit",),
    ),
    Mutation(
        "drift without an exit code",
        "rareloss/cli/report.py",
        "    if drift.drifted:\n        raise typer.Exit(FAILED)\n",
        "",
        (f"{_PROFILE}::test_check_takes_a_model_for_the_scores_of_its_fit",),
    ),
)

if __name__ == "__main__":
    sys.exit(int(try_all(MUTATIONS, __doc__) > 0))
