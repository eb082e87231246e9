import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from finemesh.results.record import read_record
from finemesh.results.report import SECTIONS, write_report
from finemesh.results.report.charts import Label, Scale, apart, looks, loss_scale
from finemesh.results.report.importance import importances, of_method, share_of_method, spaces
from finemesh.run import RunFolder
from finemesh.trial import Outcome, write_outcome

Make = Callable[..., Path]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page; complains of tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts.setdefault(tag, []).append(data)

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]


RUNS = {"finished": {"space": True}, "classify": {"task": "classify"}, "regress": {"task": "regress"},
        "one trial": {"trials": 1}, "no trial": {"trials": 0, "finished": False},
        "all failed": {"all_failed": True, "trials": 5}, "stopped": {"finished": False, "trials": 7, "space": True},
        "one method": {"methods": ("lora",), "trials": 14},
        "halving": {"fidelity": "halving", "space": True},
        "halving, stopped": {"fidelity": "halving", "trials": 4, "finished": False},
        "a front": {"objectives": ["validation_loss", "trainable_parameters", "seconds"]}}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
def test_every_run_has_a_whole_report_that_loads_nothing(make_run: Make, options: dict[str, object]) -> None:
    run = make_run(**options)
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    identifiers = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    shown = {"front": "objectives" in options, "answers": options.get("task") not in ("classify", "regress")}
    assert identifiers == [name for name, _ in SECTIONS if shown.get(name, True)]
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object")
        assert all(attributes.get(name) is None or str(attributes[name]).startswith("#") for name in ("src", "href"))
    style = "".join(page.texts["style"])
    assert "@import" not in style
    assert "url(" not in style
    assert "fetch" not in "".join(page.texts["script"])
    assert not list(run.glob(".report*"))


def test_the_front_is_drawn_and_listed(make_run: Make) -> None:
    run = make_run(objectives=["validation_loss", "trainable_parameters"])
    page, record = Page(write_report(run).read_text(encoding="utf-8")), read_record(run)
    faint, everything = page.of("dominated"), "".join(page.texts["body"])
    assert 0 < len(record.front) < len(record.scored) == len(record.front) + len(faint)
    assert {str(o.number) for o in record.front}.isdisjoint(mark["data-trial"] for mark in faint)
    assert all(f"{o.trainable_parameters:,}" in everything for o in record.front)
    assert len([line for line in page.of("line") if "best" in str(line["class"])]) == 2  # this front, and the best so far
    assert f"{len(record.front)} trials are on the front" in everything


def test_text_of_the_user_is_escaped(make_run: Make) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    assert len(re.findall("<script", text)) == 1
    assert "alert(&#39;prompt&#39;)" in text
    assert "alert(&#39;before&#39;)" in text
    assert "alert(&#39;error&#39;)" in text


def test_it_says_what_was_found_and_shows_each_row(make_run: Make) -> None:
    run = make_run()
    page = Page(write_report(run).read_text(encoding="utf-8"))
    finish = json.loads((run / "finish.json").read_text())
    winner = finish["winner"]
    assert "".join(page.texts["h1"]) == f"lora brings the test loss from 2.670 to {winner['loss']:.3f}"
    everything = "".join(page.texts["body"])
    for row in (finish["untuned"], winner, *finish["reference"].values()):
        assert f"{row['low']:.3f} to {row['high']:.3f}" in everything
    assert len(page.of("whisker")) >= 6
    assert "9f2c41d07be6" in everything
    assert "finemesh search" in everything
    config = (run / "config.yaml").read_text().replace("out: runs/demo", "out: runs/my data")
    (run / "config.yaml").write_text(config)
    assert f"finemesh tune 'runs/my data' --trial {winner['number']}" in "".join(
        Page(write_report(run).read_text(encoding="utf-8")).texts["pre"])
    assert "bf16" in "".join(page.texts["dd"])


def test_the_history_and_the_table_tell_states_apart(make_run: Make) -> None:
    page = Page(write_report(make_run()).read_text(encoding="utf-8"))
    rows = [attributes for tag, attributes in page.elements if tag == "tr" and "data-number" in attributes]
    assert [row["data-number"] for row in rows] == [str(number) for number in range(24)]
    kinds = {row["class"]: row["data-number"] for row in rows}
    assert {kinds[kind] for kind in ("failed", "infeasible", "duplicate", "pruned")} == {"5", "9", "13", "16"}
    for kind in ("failed", "infeasible", "duplicate", "pruned", "winner"):
        assert any(mark.get("data-trial") == kinds[kind] for mark in page.of(kind))
    leaders = [line for line in page.of("line") if "leader" in str(line["class"])]
    assert len(leaders) == 3


def test_a_chart_leaves_room_for_its_longest_label(make_run: Make) -> None:
    run = make_run(methods=("prompt",))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    leaders = [f"prompt {number}" for number in read_record(run).leaders]
    longest = [int(str(chart["style"]).partition("--longest:")[2]) for chart in page.of("labelled")]
    assert longest == [len("1.234"), max(map(len, leaders))]


def test_a_large_search_stays_small_and_tells_what_mattered(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(trials=150, methods=("lora", "full"), fates={3: "failed"}, space=True)
    path = write_report(run)
    assert path.stat().st_size < 400_000
    record = read_record(run)
    found = {one.method: dict(one.shares) for one in importances(record, spaces(record))}
    assert set(found) == {"lora", "full"}
    for shares in found.values():
        assert max(shares, key=lambda name: shares[name]) == "learning_rate"
        assert sum(shares.values()) == pytest.approx(1.0)
    monkeypatch.setattr("finemesh.results.report.importance.MOST", 40)  # every second one, of both methods
    for one in importances(record, spaces(record)):
        assert one.shares[0][0] == "learning_rate"
        assert dict(one.shares) != found[one.method]


def test_too_few_trials_are_said_to_be(make_run: Make) -> None:
    record = read_record(make_run(trials=8))
    assert all(not one.shares for one in importances(record, spaces(record)))
    assert share_of_method(record) is None
    assert "Too few trials to tell" in write_report(record.folder).read_text(encoding="utf-8")


def test_pruned_trials_are_compared_after_as_many_steps(make_run: Make) -> None:
    run = make_run(trials=30, methods=("lora", "prompt"), fates={4: "failed"}, space=True, fidelity="halving")
    record, page = read_record(run), Page(write_report(run).read_text(encoding="utf-8"))
    assert len(record.scored) == 8  # two of each bracket
    assert {outcome.steps for outcome in record.compared} == {2}
    told = {o.number: o for o in RunFolder(run).outcomes()}
    firsts = [o for o in told.values() if o.continues is None and o.state != "failed"]
    assert sorted(o.validation_loss for o in record.compared) == pytest.approx(sorted(o.validation_loss for o in firsts))
    assert {o.number for o in record.compared}.isdisjoint(o.continues for o in told.values())  # a point counts once
    assert all(sum(dict(one.shares).values()) == pytest.approx(1) for one in importances(record, spaces(record)))
    assert share_of_method(record) is not None
    everything = " ".join("".join(page.texts["body"]).split())
    assert everything.count("losses after 2 of 20 steps are compared, which 29 of 30 trials have.") == 3
    assert "Too few trials" not in everything
    assert everything.count("loss after 2 steps") == 2
    assert len([line for line in page.of("line") if "leader" not in line["class"] and "best" not in line["class"]]) == 29 + 26
    ends = [outcome.validation_loss for outcome in record.scored if outcome.method == record.scored[0].method]
    assert f"after 2 steps; best of {len(ends)} complete {ends[0]:.3f}" in everything


def test_trials_without_a_loss_at_that_length_are_left_out_and_estimates_said(make_run: Make) -> None:
    run = make_run(trials=18, methods=("lora",), fates={}, space=True, fidelity="halving")
    alone = [o for o in read_record(run).outcomes if o.steps == 2]
    sure, early, untrained = alone[:3]
    write_outcome(RunFolder(run).trial(sure.number), replace(sure, error="surely behind trial 0000", scored_tokens=400))
    write_outcome(RunFolder(run).trial(early.number), replace(early, error="surely behind trial 0000", steps=1))
    for folder in (RunFolder(run).trial(early.number), RunFolder(run).trial(untrained.number)):
        (folder / "curve.jsonl").write_text('{"step": 0, "validation_loss": 2.5}\n')
    write_outcome(RunFolder(run).trial(untrained.number), replace(
        untrained, state="complete", steps=20, trained_tokens=0, validation_loss=2.5))
    found = {o.number: o.validation_loss for o in read_record(run).compared}
    assert len(found) == 17
    assert early.number not in found
    assert found[untrained.number] == 2.5
    text = " ".join(write_report(run).read_text(encoding="utf-8").split())
    assert "which 17 of 18 trials have. 1 of these losses is an estimate from a part of the rows" in text


def test_where_all_trials_go_their_whole_length_their_ends_are_compared(make_run: Make) -> None:
    run = make_run(fates={5: "failed", 9: "infeasible", 13: "duplicate"})
    for number in (1, 2):
        (RunFolder(run).trial(number) / "curve.jsonl").unlink()
    record = read_record(run)
    assert record.early == []
    assert record.compared == record.scored
    assert "are compared" not in write_report(run).read_text(encoding="utf-8")


def test_conditional_settings_are_left_out_and_said() -> None:
    space = {"rank": IntDistribution(1, 64), "scale": FloatDistribution(0, 1)}
    often = [Outcome(i, "complete", "lora", {"rank": i + 1} | ({"scale": i / 20} if i % 2 else {}), 0, 20, float(i))
             for i in range(12)]
    found = of_method("lora", often, space)
    assert found.shares == (("rank", 1.0),)
    assert found.note.endswith("left out: scale.")
    assert of_method("lora", [replace(outcome, hyperparameters={"rank": 8}) for outcome in often], space).shares == ()


def test_the_share_of_the_method(make_run: Make) -> None:
    share = share_of_method(read_record(make_run(methods=("lora", "head"), trials=40, fates={})))
    assert share is not None
    assert 0.5 < share < 1


def test_spaces_are_those_searched_and_else_what_the_trials_show(make_run: Make) -> None:
    searched = spaces(read_record(make_run(space=True)))["lora"]
    assert (searched["learning_rate"].low, searched["learning_rate"].high) == (1e-5, 1e-2)
    seen = spaces(read_record(make_run()))["lora"]
    assert 1e-5 < seen["learning_rate"].low < seen["learning_rate"].high < 1e-2  # type: ignore[attr-defined]
    assert seen["learning_rate"].log  # type: ignore[attr-defined]
    assert set(seen["targets"].choices) == {"attention", "all_linear"}  # type: ignore[attr-defined]


def test_it_is_written_without_a_word(make_run: Make, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(space=True, methods=("lora",), trials=12)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    capfd.readouterr()
    write_report(run)
    assert capfd.readouterr() == ("", "")


def test_outliers_do_not_flatten_the_rest() -> None:
    scale = loss_scale([1.8, 1.9, 2.0, 2.1, 2.2, 11.0])
    assert scale.high < 4
    assert scale.at(11.0) == 100
    assert 0 < scale.at(1.8) < scale.at(2.2) < 100
    assert loss_scale([]).ticks()
    assert loss_scale([2.0]).at(2.0) == pytest.approx(50)


def test_ticks_are_round_and_inside() -> None:
    assert [tick.text for tick in Scale(1.78, 2.66).ticks()] == ["1.8", "2.0", "2.2", "2.4", "2.6"]
    assert all(0 <= tick.at <= 100 for tick in Scale(-3, 17).ticks())


def test_labels_are_kept_apart_and_inside() -> None:
    placed = apart([Label(at, str(at), "") for at in (98.0, 97.0, 99.0)], 6.0)
    heights = [label.at for label in placed]
    assert all(b - a >= 6 - 1e-9 for a, b in itertools.pairwise(heights))
    assert max(heights) <= 100
    assert [label.text for label in placed] == ["97.0", "98.0", "99.0"]


def test_a_method_looks_the_same_in_every_report() -> None:
    assert looks(["prompt", "lora"])["lora"] == looks(["lora", "mine", "full"])["lora"]
    assert len(set(looks([f"method{i}" for i in range(20)]).values())) == 20
