import pytest

from offmarl.credit.relabel import decompose
from offmarl.data.store import Dataset
from offmarl.report.page_credit import credit_section

DECLARED = "all agents are paid the same, as declared: R/N is exact"


@pytest.mark.parametrize(
    ("method", "values", "said"),
    [
        ("mean", {}, "gives every agent the same share; skill 0.00"),
        ("macca", {"shared_reward": True}, f"gives every agent the same share ({DECLARED}); skill 0.00"),
        ("additive", {"steps": 5}, "whether the data identifies that split was not tested; skill"),
    ],
)
def test_the_headline_says_what_the_decomposition_says(random_dataset, tmp_path, method, values, said):
    with Dataset.open(random_dataset("scm_a", 500, 10, agents=3)) as dataset:
        report = decompose(dataset, method, values, out=tmp_path)
        assert said in credit_section(dataset, report).headline
