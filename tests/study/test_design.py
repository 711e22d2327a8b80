import dataclasses

import numpy as np
import pytest
import yaml

from chainfx.errors import CostError, StudyError
from chainfx.passes import Distill, EarlyExit, PruneChannels, Quantize
from chainfx.study import ORDERS, Arm, Design, FreshStudent, Subject, load_design, shipped_design
from tests.study.designs import TINY, tiny

FOUR = {
    "D": (Distill(width=0.5), Distill(depth=0.5)),
    "P": (PruneChannels(0.25), PruneChannels(0.5), PruneChannels(0.75)),
    "Q": (Quantize(4, 4),),
    "E": (EarlyExit(exits=1),),
}


def arm(design, name):
    (found,) = (arm for arm in design.arms if str(arm) == name)
    return found


def labels(case):
    return [one.label for one in case.passes]


def test_arms_of_equal_letters_have_the_same_configurations():
    design = tiny(passes=FOUR)
    one, other = (design.configurations(arm(design, name)) for name in ("DP", "PD"))
    assert one == other and len(one) == 6
    assert one[1] == {"D": 0, "P": 1}
    assert design.chain(arm(design, "PD"), one[1]) == (PruneChannels(0.5), Distill(width=0.5))
    assert [len(tiny(passes=FOUR, cases=n).configurations(arm(design, "DP"))) for n in (1, 4, 9)] == [1, 4, 6]


def test_a_fresh_student_stands_for_a_distillation_behind_another_pass():
    design = tiny(passes=FOUR)
    chain = design.chain(arm(design, "PD (fresh)"), {"P": 0, "D": 0})
    assert chain == (PruneChannels(0.25), FreshStudent(Distill(width=0.5)))
    both = tiny(passes=FOUR, trainings=("paper", "equal"))
    assert both.trains(arm(both, "PD (fresh)")) == ("paper",) and both.trains(arm(both, "PD")) == ("paper", "equal")


def test_beginnings_are_shared_and_counted_once():
    design = tiny(passes=FOUR, seeds=(0, 1))
    # a seed: 2 + 3 + 1 + 1 passes alone; pairs both ways, 6 DP, 2 DQ, 2 DE, 3 PQ, 3 PE, 1 QE; fresh, 6 and 2
    assert design.stages == 2 * (7 + 2 * 17 + 8)
    assert design.stages_unshared == 2 * (7 + 2 * (2 * 17 + 8))
    first = next(iter(design.all_cases()))
    assert first.passes == () and first.seed == 0


def test_the_total_budget_gives_every_arm_the_epochs_of_the_longest():
    design = tiny(passes=FOUR, budget="total")
    assert [case.epochs for case in design.cases_of(arm(design, "D"), 0, "paper")] == [2, 2]
    assert design.cases_of(arm(design, "DP"), 0, "paper")[0].epochs == 1


def test_repetition_makes_stronger_and_milder_passes():
    design = tiny(passes=FOUR, orders="repetition")
    assert labels(design.cases_of(arm(design, "PP"), 0, "paper")[0]) == ["prune-channels(ratio=0.25)"] * 2
    assert labels(design.cases_of(arm(design, "P+"), 0, "paper")[0]) == ["prune-channels(ratio=0.4375)"]
    assert labels(design.cases_of(arm(design, "Q-Q"), 0, "paper")[0]) == ["quantize(8, 8)", "quantize(4, 4)"]


def test_marks_of_steps_give_other_readings_of_a_distillation():
    recovery, student = (shipped_design(name) for name in ("recovery", "student"))
    assert labels(recovery.cases_of(arm(recovery, "PQD~"), 0, "paper")[0])[2] == "recovery(width=0.7)"
    case = student.cases_of(arm(student, "D*Q"), 0, "paper")[0]
    assert labels(case)[0] == "untaught-student(width=0.85)" and case.steps == ("D*:0", "Q:0")
    assert labels(student.cases_of(arm(student, "D^Q"), 0, "paper")[0])[0] == "contrasted-student(width=0.85)"
    assert student.trains(arm(student, "D*Q")) == student.trains(arm(student, "D^Q")) == ("paper",)
    with pytest.raises(StudyError) as caught:
        student.chain(Arm(("P~",)), {"P": 0})
    assert str(caught.value) == (
        "prune-channels(ratio=0.25, round_to=1) is no distillation, which alone has a teacher to be with or without."
    )


def test_a_design_goes_through_json_and_yaml(tmp_path):
    design = shipped_design("pairwise")
    assert Design.from_dict(design.to_dict()) == design
    path = tmp_path / "design.yaml"
    path.write_text(yaml.safe_dump(TINY.to_dict()))
    assert load_design(path) == TINY
    path.write_text(
        """
        orders: pairwise
        network: {name: zoo.resnet, options: {blocks: [1], width: 4, in_channels: 1}}
        data: {source: digits, validation: 0.4}
        passes:
          P: [{prune-channels: {ratio: 0.25}}]
          Q: [{quantize: {weights: 4, activations: 4}}, quantize]
        """
    )
    assert load_design(path).passes == {"P": (PruneChannels(0.25),), "Q": (Quantize(4, 4), Quantize())}


def test_the_hash_is_that_of_what_is_measured_and_not_of_how_many_seeds():
    assert tiny(seeds=(3, 4)).hash == TINY.hash
    assert len({TINY.hash, tiny(margin=0.1).hash, tiny(passes=FOUR).hash}) == 3


BAD = {
    "orders": (
        "all",
        "design: orders='all' cannot be; use one of pairwise, control, insertion, insertion-all, chain, ",
    ),
    "passes": ({"P": (PruneChannels(0.5),)}, "design: passes={'P': (PruneChannels("),
    "seeds": ((), "design: seeds=() cannot be; use seeds that differ."),
    "trainings": (("best",), "design: trainings=('best',) cannot be; use paper, equal."),
    "budget": ("none", "design: budget='none' cannot be; use 'per stage', 'total' or 'both'."),
    "hopeless": (0.05, "design: hopeless=0.05 cannot be; use None, or a loss from reference."),
    "cases": (0, "design: cases=0 cannot be; use None or a number from 1."),
    "thresholds": ((), "design: thresholds=() cannot be; use numbers from 0."),
    "reference": (0, "design: reference=0 cannot be; use a share of accuracy in (0, 1]."),
    "margin": (0, "design: margin=0 cannot be; use a share above 0."),
    "tiers": ((0.2,), "design: tiers=(0.2,) cannot be; use losses from 0 to reference."),
    "test": ("u", "design: test='u' cannot be; use 't' or 'sign-flip'."),
    "alpha": (1, "design: alpha=1 cannot be; use a chance in (0, 0.5)."),
}


@pytest.mark.parametrize("option", BAD)
def test_what_cannot_be(option):
    value, message = BAD[option]
    with pytest.raises(StudyError) as caught:
        tiny(**{option: value})
    assert str(caught.value).startswith(message)


def test_grids_that_cannot_be():
    with pytest.raises(StudyError) as caught:
        tiny(passes={"P": (), "Q": (Quantize(),)})
    assert str(caught.value) == "design: the grid of 'P' is (); give passes of one class."
    with pytest.raises(StudyError, match="a pass has the letter 'P\\+'; use letters without"):
        tiny(passes={"P+": (PruneChannels(),), "Q": (Quantize(),)})
    with pytest.raises(StudyError, match="use a pass under one letter only"):
        tiny(passes={"P": (Quantize(4),), "Q": (Quantize(8),)})
    with pytest.raises(StudyError, match="has no form as strong as two of it"):
        tiny(orders="repetition", passes={"P": (PruneChannels(macs=0.5),), "Q": (Quantize(),)} | {"E": (EarlyExit(),)})
    with pytest.raises(CostError):
        tiny(convention="none")


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "design.yaml"
    with pytest.raises(StudyError) as caught:
        load_design(path)
    assert str(caught.value) == (
        f"the design {path} cannot be read: it does not exist; give a YAML file with the fields of "
        "chainfx.study.Design, or the name of a design."
    )
    path.write_text("a: [1\n")
    with pytest.raises(StudyError) as caught:
        load_design(path)
    assert str(caught.value) == (
        f"the design {path}:2 is not valid YAML: expected ',' or ']', but got '<stream end>'; mend it there."
    )
    path.write_text("[1, 2]")
    with pytest.raises(StudyError, match="is no mapping; give the fields of"):
        load_design(path)
    plain = TINY.to_dict()
    for change, message in {
        "epochs": f"{path}: design: unknown key 'epochs'; allowed are alpha, budget, cases, convention, data, ",
        "passes": f"{path}: there is no pass named 'prune'; ",
        "orders": f"{path}: design: it has no 'orders'; give it.",
        "tuning": f"{path}: design: it does not have the form of a design (",
    }.items():
        changed = {**plain, "epochs": 3} if change == "epochs" else dict(plain)
        changed |= {"passes": {"P": ["prune"], "Q": ["quantize"]}} if change == "passes" else {}
        changed |= {"tuning": {"speed": 3}} if change == "tuning" else {}
        if change == "orders":
            changed.pop("orders")
        path.write_text(yaml.safe_dump(changed))
        with pytest.raises(StudyError) as caught:
            load_design(path)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ORDERS)
def test_every_design_ships_and_says_what_it_does(name):
    design = shipped_design(name)
    assert Design.from_dict(design.to_dict()) == design
    assert str(design).startswith(f"study {name!r} of zoo.resnet on digits\n")


def test_a_design_says_that_longer_arms_train_longer():
    ablation = shipped_design("ablation")
    assert ablation.budget == "both" and shipped_design("pairwise").budget == "per stage"
    lines = {
        "both": "arms of more steps train longer; a second table has them equally long",
        "per stage": "arms of more steps train longer; budget 'both' also has them equally long",
    }
    for budget in ("per stage", "total", "both"):
        text = str(dataclasses.replace(ablation, budget=budget)).splitlines()
        assert [line for line in text if line.startswith("arms of more")] == [*filter(None, [lines.get(budget)])]
    assert not any(line in str(shipped_design("pairwise")) for line in lines.values())


def test_both_budgets_have_the_cases_of_each_and_share_what_is_alike():
    design = tiny(passes=FOUR, orders="ablation", budget="both", seeds=(0,), trainings=("paper",))
    stage, total = (set(each.all_cases()) for each in design.readings)
    assert set(design.all_cases()) == stage | total
    assert {case.steps for case in stage & total} >= {("D:0", "P:0", "Q:0", "E:0"), ("D:0",)}  # the longest arm
    longest = max(case.epochs for case in total)
    assert longest == 4 * design.tuning.epochs and {case.steps for case in total if case.epochs == longest} >= {
        ("D:0",)
    }
    assert design.stages_unshared == 2 * design.readings[0].stages_unshared


def test_the_grid_of_the_paper_has_about_twenty_cases_of_every_pair():
    design = shipped_design("pairwise", grid="paper")
    assert {len(design.configurations(arm)) for arm in design.arms if str(arm) in ("DP", "PD", "DQ", "PQ")} == {20}
    assert {len(design.configurations(arm)) * 11 for arm in design.arms if str(arm) in ("DE", "EP", "QE")} == {44, 55}
    assert not design.reduced and "reduced" not in str(design)
    with pytest.raises(StudyError) as caught:
        shipped_design("alone", grid="paper")
    assert (
        str(caught.value) == "the design 'alone' is not one of the paper's and has its own strengths; leave out grid."
    )
    with pytest.raises(StudyError) as caught:
        shipped_design("pairwise", grid="large")
    assert str(caught.value) == "grid='large' is not known; use 'small' or 'paper'."


def test_shipped_designs():
    assert len(shipped_design("pairwise", seeds=10).seeds) == 10
    assert shipped_design("pairwise").reduced
    with pytest.raises(StudyError, match="there is no design 'all'; use one of pairwise, "):
        shipped_design("all")
    with pytest.raises(StudyError) as caught:
        shipped_design("pairwise", "svhn")
    assert str(caught.value) == (
        "no design ships for data 'svhn'; use one of 'digits', 'diabetes', 'mnist', 'cifar10', or write a YAML file, "
        "see docs/study.md."
    )


def test_designs_for_data_in_files_name_the_files(tmp_path):
    with pytest.raises(StudyError) as caught:
        shipped_design("pairwise", "mnist")
    assert str(caught.value) == "'mnist' is read from files; give the folder of its train.npz and test.npz."
    images, labels = np.zeros((40, 28, 28), np.uint8), np.arange(40) % 4
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    subject = Subject.of(shipped_design("pairwise", "mnist", folder=tmp_path))
    assert subject.data.input_shape == (1, 28, 28) and len(subject.data.test) == 40


def test_designs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.margin = 0.1


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_exits_of_shipped_designs_stay_whatever_they_cost(name):
    design = shipped_design(name)
    exits = [one for grid in design.passes.values() for one in grid if isinstance(one, EarlyExit)]
    assert all(one.keep and one.threshold > 1 for one in exits)
