"""The page of a report as a reader meets it: order, anchors, numbers of figures, what it says of what is doubtful."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from scaling.analysis import decisions, report
from scaling.analysis.analyze import analyze
from scaling.analysis.identifiability import Verdict, judged
from scaling.analysis.profiles import profiles
from scaling.analysis.reporting import check_plots, check_words, checks, next_page, page
from scaling.analysis.reporting import words as words_of
from scaling.analysis.reporting.style import log_ticks, style
from scaling.analysis.selection import select
from scaling.analysis.table import table_from_frame, warning

SENSITIVE = (
    {"what": "rows", "setting": "without the <worst> row", "a": 0.47, "N_at_target": 1e6},
    {"what": "rows", "setting": "without the largest budget", "a": 0.60, "N_at_target": None},
    {"what": "objective", "setting": "least squares", "a": None, "N_at_target": None},
)
CELLS = {
    "cells": [{"N": 2e5, "D": 3e6, "C": 4e12}],
    "flops": 4e12,
    "said": "One more cell narrows the interval of N* by a third.",
}


@pytest.fixture(scope="module")
def analysis(sweep):
    """An analysis with every optional part."""
    found = analyze(table_from_frame(sweep(noise=0.003)), target_flops=[5e12, 1e14], resamples=100)
    profiled = profiles(found.fit)
    return dataclasses.replace(
        found,
        profiles=profiled,
        verdicts=judged(found.fit, profiled),
        selection=select(found.table),
        sensitivity=SENSITIVE,
        next_cells=CELLS,
        waste=tuple(decisions.waste(found)),
        data_limited=tuple(decisions.data_limited(found, 1e6)),
        inference=tuple(decisions.inference(found, 1e9)),
    )


@pytest.fixture(scope="module")
def written(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    report.write_report(analysis, folder)
    return folder


def shown(analysis) -> str:
    """The page without its figures."""
    return page.page(analysis, report.report_dict(analysis), decisions.next_runs(analysis), {}, "title", [])


def words(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)))


class Outline(HTMLParser):
    """The headings, the anchors and the tables of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.levels, self.ids, self.links, self.labels, self.loose, self.path = [], [], [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if re.fullmatch(r"h\d", tag):
            self.levels.append(int(tag[1]))
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        if tag == "svg":
            self.labels.append(found.get("aria-label", ""))
        if tag == "table":
            self.loose += "wide" not in dict(self.path[-1][1]).get("class", "")
        if tag not in ("meta", "br"):
            self.path.append((tag, attributes))

    def handle_startendtag(self, tag, attributes):
        """Elements of SVG that hold nothing."""

    def handle_endtag(self, tag):
        self.path.pop()


def test_headings_and_anchors_are_in_order(written):
    outline = Outline((written / "report.html").read_text(encoding="utf-8"))
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False))
    assert outline.links == [f"#{name}" for name in outline.ids if f"#{name}" in outline.links]  # in page order
    assert len(outline.links) == outline.levels.count(2) - 1  # all but the answer, which stands above the contents
    assert outline.loose == 0  # every table scrolls in a box of its own: none can widen a phone's page
    assert all(len(label) > 20 for label in outline.labels)


def test_the_answer_comes_first_and_figures_are_numbered_as_they_stand(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert headings[:3] == ["The answer in three sentences", "Warnings, and what to do about them", "What to run next"]
    assert headings[-1] == "Reporting checklist"
    numbers = [int(number) for number in re.findall(r"<strong>Figure (\d+)\.</strong>", text)]
    assert numbers == list(range(1, 8))
    for name in ("profiles", "held_out", "sensitivity"):
        assert (written / f"{name}.svg").exists()
        assert (written / f"{name}.png").exists()


def test_every_part_that_was_done_is_told(analysis, written):
    text = words((written / "report.html").read_text(encoding="utf-8"))
    for said in (
        "What the runs determine",
        "Which law predicts best",
        "How the answer moves",
        "Under 2 other choices the exponent of N* goes from 0.470 to 0.600",
        "It moves most with rows: without the largest budget (0.600)",
        "without the &lt;worst&gt; row",
        "One more cell narrows the interval of N* by a third.",
        "With 1M unique tokens.",
        "as good as new up to 4 epochs",
        "serving 1B tokens together",
        "What the difference would cost",
        f"weighted mean of several laws by {analysis.selection.nested_rmse:.2%}",
        f"The comparison took {analysis.selection.fits} fits.",
        "A parabola misses by",
        "E, alpha, beta and the exponent of N*",
        "No verdict is given on A and B",
    ):
        assert said in text
    for verdict in analysis.verdicts:
        assert (verdict.why in text) == (verdict.status != "identified")


def test_what_was_not_done_has_no_section(analysis):
    bare = {"profiles": (), "verdicts": (), "sensitivity": (), "selection": None, "next_cells": "it was not asked for"}
    more = {"waste": (), "data_limited": (), "inference": ()}
    text = words(shown(dataclasses.replace(analysis, **bare, **more)))
    for heading in ("What the runs determine", "Which law predicts best", "How the answer moves", "With limited data"):
        assert heading not in text
    text = words(shown(dataclasses.replace(analysis, selection="3 isoFLOP budgets: too few")))
    assert "Not compared: 3 isoFLOP budgets: too few." in text


def test_a_weakly_identified_parameter_is_never_a_number_alone(analysis):
    """Neither its estimate nor its bootstrap interval stands on the page: only what the runs do exclude."""
    value = analysis.fit.parameters["alpha"]
    weak = Verdict("alpha", value, (0.2, None), "weakly_identified", "The profile stays low.")
    bound = Verdict("E", 0.0, (None, 1.1), "at_bound", "It ended at zero.")
    text = words(shown(dataclasses.replace(analysis, verdicts=(weak, bound), warnings=())))
    assert "alpha weakly identified, at least 0.2" in text
    assert "E at its bound, at most 1.1" in text
    assert "the runs do not fix alpha and E" in text
    assert check_words.number(value) not in text
    fixed = words(shown(analysis))
    assert check_words.number(value) in fixed


def test_intervals_in_words():
    assert check_words.interval(0.5, 2.0) == "between 0.5 and 2"
    assert check_words.interval(None, 2e9) == "at most 2.000e+09"
    assert check_words.interval(13.0, None) == "at least 13"
    assert check_words.interval(None, None) == "anything"
    found = check_words.flat([{"direction": {"alpha": 0.7, "A": -0.7, "E": 0.1}, "curvature_ratio": 1e-4}])
    assert "in the proportions alpha +70%, A -70% and E +10% make next to no difference" in found[0]


def test_report_json_holds_it_all_strictly(analysis, written):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    found = json.loads((written / "report.json").read_text(), parse_constant=refuse)
    assert set(found["answer"]) == {"train", "trust", "next", "grade"}
    names = [verdict["name"] for verdict in found["identifiability"]["verdicts"]]
    assert names == [verdict.name for verdict in analysis.verdicts]
    assert {"name", "value", "interval", "status", "why"} == set(found["identifiability"]["verdicts"][0])
    first = found["identifiability"]["profiles"][0]
    assert len(first["grid_G"]) == len(first["objective_G"]) > 5
    assert found["selection"]["nested_rmse"] == analysis.selection.nested_rmse
    assert sum(row["chosen"] for row in found["selection"]["rows"]) == 1
    assert found["sensitivity"] == list(SENSITIVE)
    assert len(found["laws"]) == 1 + len(analysis.selection.rows())
    for law in found["laws"]:
        assert {"law", "objective", "parameters", "held_out_rmse"} <= set(law)
        assert all(set(est) == {"value", "ci", "level"} for est in law["parameters"].values())
    assert {entry["item"] for entry in found["checklist"]} >= {"Objective", "SHA-256 of the table"}
    assert found["settings"]["target_flops"] == [5e12, 1e14]
    assert found["versions"]["numpy"] == np.__version__


def test_plain_values_are_strict_json():
    mixed = {"a": np.array([1.0, np.nan]), "b": (np.int64(3), np.bool_(True)), "c": np.inf, "d": None, "e": "x"}
    assert checks.plain(mixed) == {"a": [1.0, None], "b": [3, True], "c": None, "d": None, "e": "x"}
    assert type(checks.plain(np.int64(3))) is int
    assert checks.plain(Verdict("E", 1.0, (None, 2.0), "at_bound", "why"))["interval"] == [None, 2.0]


def test_profiles_of_every_kind_can_be_drawn(analysis):
    """Open on either side or both, over many decades, with points that could not be computed: each is a curve."""
    one = analysis.profiles[0]
    grid = np.geomspace(1e-3, 1e9, 40)
    rise = np.clip(np.log(grid / 15.0), None, 0.0) ** 2
    rise[5] = np.nan
    open_ = dataclasses.replace(one, name="R_D", value=15.0, grid_G=grid, objective_G=rise, interval=(5.5, None))
    flat = dataclasses.replace(open_, name="R_N", objective_G=np.zeros(40), interval=(None, None))
    lower = dataclasses.replace(one, objective_G=one.objective_G - 0.2)  # a better minimum than the fit
    weak = Verdict("R_D", 15.0, (5.5, None), "weakly_identified", "")
    with style():
        for found in ((one,), (open_, flat), (one, open_, flat, lower)):
            drawing = check_plots.profile_figure(found, [weak])
            panels = [axes for axes in drawing.axes if axes.axison]
            assert len(panels) == len(found)
            for axes, profile in zip(panels, found, strict=True):
                low, high = axes.get_xlim()
                assert low <= profile.value <= high
    assert panels[1].get_xscale() == "log"
    assert panels[1].get_xlabel() == "$R_{D}$"
    assert panels[1].lines[1].get_linestyle() == "--"  # not by colour alone
    assert panels[0].get_xscale() == "linear"


def test_sensitivity_says_how_many_choices_stay_inside():
    reported = {"value": 0.5, "ci": [0.45, 0.55], "level": 0.9}
    text = check_words.sensitivity(SENSITIVE, reported)
    assert "1 of them stay inside its 90% interval" in text
    assert "stay inside" not in check_words.sensitivity(SENSITIVE, {**reported, "ci": None})
    assert check_words.sensitivity(SENSITIVE[2:], reported).startswith("No other choice")


def test_another_count_of_parameters_is_no_error_of_the_exponent():
    """What counts N otherwise has another exponent: it neither widens the range nor counts as outside."""
    rows = (*SENSITIVE, {"what": "N counted as", "setting": "N_blocks", "a": 0.9, "N_at_target": 1e5})
    text = check_words.sensitivity(rows, {"value": 0.5, "ci": [0.45, 0.55], "level": 0.9})
    assert text.startswith("Under 2 other choices the exponent of N* goes from 0.470 to 0.600")
    assert "1 of them stay inside" in text
    assert text.endswith("the exponent of another N*, and no error: 0.900.")


def test_cells_dearer_than_the_run_are_said_to_be():
    assert "Together they take 2 times the compute of the run itself" in check_words.cells(CELLS, 2e12)
    assert "Together" not in check_words.cells(CELLS, 4e12)


def test_the_certificate_says_what_it_proves(analysis):
    facts = analysis.fit.certificate
    assert words_of.certified({**facts, "share_reaching_best": 1.0}).endswith(
        f"All {facts['starts']} starts end there."
    )
    assert "25% end there and none lower" in words_of.certified({**facts, "share_reaching_best": 0.25})
    assert words_of.certified({**facts, "gradient_norm": 1e-3}).startswith("Not certified")
    assert words_of.certified({**facts, "gradient_norm": np.nan}).startswith("Not certified")


def test_a_configuration_in_a_line():
    run = {
        "model": {"d_model": 48, "n_layers": 3},
        "data": {"sequence_length": 64},
        "batch_size": 8,
        "steps": 6873,
        "optimizer": {"peak_lr": 0.008676},
    }
    said = "d_model 48, n_layers 3, 6,873 steps of 8 times 64 tokens, peak_lr 0.00868"
    assert next_page.configuration(run) == said
    assert next_page.configuration({"d_model": 64}) == "d_model 64"


def test_warnings_stand_with_what_to_do(analysis):
    found = (warning("misfit", "It misses <by> much."), warning("outliers", "2 rows are marked."))
    text = shown(dataclasses.replace(analysis, warnings=found))
    assert "It misses &lt;by&gt; much." in text
    assert '<h3 class="grave">May make the answer wrong</h3>' in text
    assert "Worth knowing" in text
    assert "Fit another form of the law" in text
    assert "Limit what these runs can tell" not in text


@pytest.mark.parametrize("low", [1.0, 2.3e9, 7.7e17])
@pytest.mark.parametrize("factor", [1.2, 1.5, 2.0, 3.4, 12.0, 55.0, 1e3, 1e7, 1e12])
@pytest.mark.parametrize("labels", [5, 7])
def test_ticks_of_log_axes_are_few_round_and_apart(low, factor, labels):
    ticks = np.array(log_ticks(low, low * factor, labels))
    assert 1 <= len(ticks) <= labels
    assert (low * (1 - 1e-8) <= ticks).all()
    assert (ticks <= low * factor * (1 + 1e-8)).all()
    assert (np.diff(np.log(ticks)) >= 0.8 / labels * np.log(factor) * (1 - 1e-9)).all()
    assert all(float(f"{tick:.1e}") == pytest.approx(tick) for tick in ticks)  # two digits say them
