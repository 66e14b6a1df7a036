import re
from dataclasses import dataclass

import pytest

from offmarl.errors import UsageError
from offmarl.settings import configure, parse_settings


@dataclass(frozen=True)
class Example:
    alpha: float = 1.0
    hidden: tuple[int, ...] = (64, 64)
    share: bool = False


def test_settings_are_read_as_yaml_and_sorted_into_sections():
    parsed = parse_settings(
        ["learner.alpha=5", "env.agents=8", "learner.hidden=[32, 16]"], ["env", "learner", "train"]
    )
    assert parsed == {"env": {"agents": 8}, "learner": {"alpha": 5, "hidden": [32, 16]}, "train": {}}


def test_configured_values_take_the_declared_types():
    config = configure(Example, {"alpha": 5, "hidden": [32, 16]}, "learner")
    assert config == Example(alpha=5.0, hidden=(32, 16))
    assert isinstance(config.alpha, float)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learner.alhpa=5", "did you mean alpha"),
        ("lerner.alpha=5", "did you mean learner"),
        ("learner.alpha", "expected section.key=value"),
        ("learner.alpha=fast", "learner.alpha='fast'"),
        ("learner.alpha=.nan", "finite"),
        ("learner.hidden=[1, two]", "learner.hidden.1='two'"),
        ("learner.alpha=[", "not valid YAML"),
        ("learner.alpha=2020-13-45", "not valid YAML (month must be in 1..12)"),
        ("learner.alpha=!!int foo", "not valid YAML"),
        ("learner.alpha=!!bool maybe", "not valid YAML"),
        ("learner.alpha=!!float", "not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(assignment, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        configure(Example, parse_settings([assignment], ["env", "learner"])["learner"], "learner")
