"""Classes that people bring along, named on the command line as `module:Class`."""

import pytest

from offmarl.credit.base import Decomposer
from offmarl.credit.baselines import EqualSplit
from offmarl.credit.registry import decomposer_class
from offmarl.errors import UsageError
from offmarl.learners.bc import BC
from offmarl.learners.registry import learner_class


def test_a_class_is_found_by_its_module():
    assert decomposer_class("offmarl.credit.baselines:EqualSplit") is EqualSplit
    assert learner_class("offmarl.learners.bc:BC", "continuous") is BC
    assert issubclass(decomposer_class("mean"), Decomposer)


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda: decomposer_class("no_such_module:Mine"), "cannot import 'no_such_module'"),
        (lambda: decomposer_class("offmarl.credit.base:Mine"), "'offmarl.credit.base' has no 'Mine'"),
        (lambda: decomposer_class(":"), "':': expected module:Class"),
        (lambda: decomposer_class("json:"), "'json:': expected module:Class"),
        (lambda: decomposer_class(".json:Mine"), "'.json:Mine': expected module:Class"),
        (
            lambda: decomposer_class("offmarl.learners.bc:BC"),
            "not a subclass of offmarl.credit.base.Decomposer",
        ),
        (lambda: decomposer_class("offmarl.credit.base:equal_split"), "not a subclass"),
        (lambda: learner_class("offmarl.credit.baselines:EqualSplit", "continuous"), "not a subclass"),
        (
            lambda: learner_class("offmarl.learners.bc:BC", "discrete"),
            "continuous actions, this dataset's are discrete",
        ),
    ],
)
def test_what_is_wrong_is_told(find, message):
    with pytest.raises(UsageError) as raised:
        find()
    assert message in str(raised.value)
