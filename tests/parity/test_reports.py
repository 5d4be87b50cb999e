"""`diagnose` on public reports: the wrong program of each thread is built again, and its cause must be named.

The programs lie in `reports/`, in plain NumPy and PyTorch. Each is also built as its thread mended it, and then nothing may be found.
"""

from __future__ import annotations

import re
import warnings

import pytest
from parity.reports import layouts, masks, positions, scores
from parity.reports.asked import Report

from polyattn.parity import Diagnosis, diagnose

REPORTS = [*masks.REPORTS, *scores.REPORTS, *layouts.REPORTS, *positions.REPORTS]

#: The programs whose cause `diagnose` has no name for.
NOT_YET = {
    "an_encoder_becomes_causal",
    "an_image_in_a_text",
    "the_mask_of_another_item",
    "nan_behind_the_mask",
    "a_window_on_the_wrong_layer",
    "the_other_mscale",
    "the_width_that_a_head_would_have",
    "slopes_of_six_heads",
    "slopes_from_nought",
    "one_softmax_for_all_heads",
    "softmax_of_the_batch",
    "a_bias_in_base_two",
    "parts_merged_in_base_two",
    "a_maximum_that_is_finite",
    "items_taken_for_tokens",
    "as_many_heads_as_a_head_is_wide",
    "packed_otherwise",
    "the_whole_buffer",
    "the_base_of_llama",
    "the_base_of_the_default",
    "no_llama_scaling",
    "no_linear_scaling",
    "partial_frequencies",
    "all_is_turned",
    "all_decoded_stand_at_nought",
    "counted_too_early",
    "one_position_for_the_batch",
    "no_norms",
    "no_temperature",
    "no_log_n",
}
#: Those of them whose call it cannot be told.
UNSAID = {"no_temperature"}


def said(report: Report, wrong: bool) -> Diagnosis:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, on programs that are wrong
        output, (query, key, value), meant = report.program(wrong)
        return diagnose(output, query, key, value, **meant)


def each(*expected: str) -> list[object]:
    """All reports; the programs that are named here are expected to fail."""
    fails = pytest.mark.xfail(strict=True, reason="no name for this cause")
    return [
        pytest.param(report, id=report.id, marks=fails if report.program.__name__ in expected else ())
        for report in REPORTS
    ]


def test_reports_are_told_apart() -> None:
    names = [report.program.__name__ for report in REPORTS]
    assert len({report.url for report in REPORTS}) == len(set(names)) == len(REPORTS)
    assert UNSAID <= NOT_YET <= set(names)


@pytest.mark.parametrize("report", each(*NOT_YET))
def test_the_cause_of_a_report_is_named(report: Report) -> None:
    found = said(report, wrong=True)
    assert not found.agrees
    assert found.findings, found
    assert re.search(report.names, " and ".join(found.findings[0].sentences)), found


@pytest.mark.parametrize("report", each(*UNSAID))
def test_the_mended_program_is_not_accused(report: Report) -> None:
    assert said(report, wrong=False).agrees
