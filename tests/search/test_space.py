import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from finemesh.errors import InputError
from finemesh.hyperparameter import choice, integer, real
from finemesh.search.space import Space

SPACE = Space({
    "lora": {"rank": integer(4, 64, 8, log=True), "learning_rate": real(1e-5, 1e-2, 2e-4, log=True),
             "dropout": real(0.0, 0.2, 0.0, step=0.05), "biased": choice([True, False], False)},
    "prompt": {"length": integer(10, 100, 20, step=10), "init": choice(["random", "text"], "random"),
               "words": integer(1, 5, 2, when=("init", ("text",)))},
})


def test_only_what_is_active_is_suggested_under_the_name_of_its_method() -> None:
    trial = FixedTrial({"method": "prompt", "prompt.length": 30, "prompt.init": "random"})
    assert SPACE.suggest(trial) == ("prompt", {"length": 30, "init": "random"})
    trial = FixedTrial({"method": "prompt", "prompt.length": 30, "prompt.init": "text", "prompt.words": 4})
    assert SPACE.suggest(trial) == ("prompt", {"length": 30, "init": "text", "words": 4})
    assert set(trial.params) == {"method", "prompt.length", "prompt.init", "prompt.words"}


def test_the_method_is_in_the_store_when_there_is_one_only() -> None:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    method, point = SPACE.narrowed({"lora": {}}).suggest(trial)
    assert method == trial.params["method"] == "lora"
    assert SPACE.stored(method, point) == trial.params


def test_the_order_of_the_methods_is_the_users() -> None:
    assert list(SPACE.narrowed({"prompt": {}, "lora": None}).methods) == ["prompt", "lora"]


def test_a_fixed_value_is_in_the_point_and_not_in_the_store() -> None:
    space = SPACE.narrowed({"prompt": {"init": "text", "length": "40"}})
    trial = FixedTrial({"method": "prompt", "prompt.words": 3})
    assert space.suggest(trial) == ("prompt", {"length": 40, "init": "text", "words": 3})
    assert space.stored("prompt", {"length": 40, "init": "text", "words": 3}) == trial.params


@pytest.mark.parametrize(("name", "written", "distribution"), [
    ("rank", [2, 512], IntDistribution(2, 512, log=True)),
    ("rank", ["8", 16], IntDistribution(8, 16, log=True)),
    ("learning_rate", ["1e-6", 1], FloatDistribution(1e-6, 1.0, log=True)),
    ("dropout", [0, 0.12], FloatDistribution(0.0, 0.1, step=0.05)),
    ("rank", {"choices": [4, 8, 8, 16]}, CategoricalDistribution((4, 8, 16))),
    ("biased", {"choices": [True]}, CategoricalDistribution((True,))),
])
def test_a_range_or_choices_replace_the_methods_own(name: str, written: object, distribution: object) -> None:
    narrowed = SPACE.narrowed({"lora": {name: written}}).methods["lora"][name]
    assert narrowed.distribution == distribution
    assert narrowed.distribution._contains(narrowed.distribution.to_internal_repr(narrowed.default))


def test_a_list_of_choices_where_the_method_has_choices() -> None:
    assert SPACE.narrowed({"prompt": {"init": ["text"]}}).methods["prompt"]["init"].distribution == \
        CategoricalDistribution(("text",))


@pytest.mark.parametrize(("method", "written", "message"), [
    ("lora", {"rnak": 8}, "lora has no hyperparameter rnak. Did you mean rank?"),
    ("lorra", {}, "there is no method lorra. Did you mean lora?"),
    ("lora", {"rank": [64, 4]}, r"methods.lora.rank: the range \[64, 4\] is upside down: write \[4, 64\]"),
    ("lora", {"learning_rate": [0, 1e-3]}, r"learning_rate: the range \[0, 0.001\] must start above 0: it is searched"),
    ("lora", {"rank": [4, 8, 16]}, r"\[4, 8, 16\] must be a range \[low, high\]; .*{choices: \[4, 8, 16\]}"),
    ("lora", {"rank": 8.5}, "8.5 must be a whole number"),
    ("lora", {"rank": "many"}, "'many' must be a number"),
    ("lora", {"rank": True}, "true must be a number"),
    ("lora", {"rank": 0}, "0 must be above 0; the method's own range is 4 to 64"),
    ("lora", {"dropout": -0.1}, "-0.1 must be at least 0"),
    ("lora", {"learning_rate": float("nan")}, "nan must be a number"),
    ("prompt", {"init": "txt"}, "there is no choice 'txt'. Did you mean text?"),
    ("prompt", {"init": {"choices": ["text", 3]}}, "there is no choice 3"),
    ("lora", {"biased": 1}, "there is no choice 1. Known: false, true"),
    ("lora", {"rank": {"low": 4}}, r"{low: 4} must be a value, a range \[low, high\] or {choices: \[1, 2\]}"),
    ("lora", {"rank": {"choices": []}}, "must be a value, a range"),
])
def test_what_cannot_be_meant_is_refused(method: str, written: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SPACE.narrowed({method: written})


def test_a_point_is_settings_over_fixed_over_reference_over_defaults() -> None:
    space = SPACE.narrowed({"lora": {"dropout": 0.1}, "prompt": {}})
    point = space.point("lora", {"rank": "16"}, {"rank": 32, "learning_rate": 1e-3})
    assert point == {"rank": 16, "learning_rate": 1e-3, "dropout": 0.1, "biased": False}
    assert space.point("prompt", {"init": "text"}) == {"length": 20, "init": "text", "words": 2}
    assert space.point("prompt", {}, {"words": 5}) == {"length": 20, "init": "random"}


def test_settings_that_have_no_effect_or_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match=r"prompt.words has no effect here: .* only where init is text"):
        SPACE.point("prompt", {"words": 3})
    with pytest.raises(InputError, match=r"no hyperparameter lenght. Did you mean length\?"):
        SPACE.point("prompt", {"lenght": 3})
    assert SPACE.point("lora", {"biased": "true"})["biased"] is True


def test_the_key_is_that_of_the_point() -> None:
    assert SPACE.key("lora", {"rank": 8, "dropout": 0}) == SPACE.key("lora", {"dropout": 0.0, "rank": 8})
    assert SPACE.key("lora", {"rank": 8}) != SPACE.key("lora", {"rank": 9})


def test_the_nearest_point_is_inside() -> None:
    space = SPACE.narrowed({"lora": {"rank": [16, 32], "dropout": 0.1, "learning_rate": {"choices": [1e-4, 1e-3]}},
                            "prompt": {"length": [20, 50], "init": ["text"]}})
    point = space.nearest("lora", {"rank": 8, "learning_rate": 9e-4, "dropout": 0.0, "biased": True})
    assert point == {"rank": 16, "learning_rate": 1e-3, "dropout": 0.1, "biased": True}
    assert space.nearest("prompt", {"length": 34, "init": "random"}) == {"length": 30, "init": "text", "words": 2}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(space.stored("lora", point))
    assert space.suggest(study.ask()) == ("lora", point)


def test_the_ends_of_what_is_written_are_shown_in_whole_points() -> None:
    space = SPACE.narrowed({"lora": {"rank": [16, 32], "dropout": 0.1}, "prompt": {"words": [3, 9]}})
    assert [point["rank"] for point in space.extremes("lora", "rank")] == [16, 32]
    assert [point["dropout"] for point in space.extremes("lora", "dropout")] == [0.1]
    assert [(point["init"], point["words"]) for point in space.extremes("prompt", "words")] == [("text", 3), ("text", 9)]
    assert space.smallest("lora")["rank"] == 16
