"""A sweep in the report: which dimensions lie where, what a cell says, and what was stopped."""

from __future__ import annotations

from largeforge_ray.observe.sweeps import sweep_view


def trial(held_out: float, stopped: bool = False, **point: object) -> dict:
    return {"point": point, "held_out": held_out, "step": 10, "stopped": stopped, "seconds": 1.5}


def test_rank_goes_down_alpha_across_and_a_cell_is_its_best_trial() -> None:
    trials = [
        trial(1.0, learning_rate=0.01, alpha=8, rank=4),
        trial(1.5, learning_rate=0.02, alpha=8, rank=4),
        trial(2.0, True, learning_rate=0.01, alpha=16, rank=16),
        trial(1.2, learning_rate=0.01, alpha=16, rank=4),
    ]
    sweep = sweep_view("tuned", {"trials": trials})
    assert sweep is not None
    assert (sweep.down, sweep.rows, sweep.across, sweep.columns) == (
        "rank",
        ("4", "16"),
        "alpha",
        ("8", "16"),
    )
    (first, second), (none, stopped) = sweep.cells
    assert (first.held_out, first.trials, first.stopped) == (1.0, 2, False)
    assert (second.held_out, none, stopped.stopped) == (1.2, None, True)
    assert (sweep.warmth(first), sweep.warmth(stopped)) == (100, 0)
    assert sweep.trials[0].point == "learning_rate 0.01, alpha 8, rank 4"


def test_one_dimension_is_one_row_of_places_and_a_train_stage_is_no_sweep() -> None:
    sweep = sweep_view("tuned", {"trials": [trial(1.0, learning_rate=x) for x in (0.1, 0.01)]})
    assert sweep is not None
    assert (sweep.across, sweep.rows, sweep.columns) == ("", ("0.01", "0.1"), ("",))
    assert sweep.warmth(sweep.cells[0][0]) == 100
    assert sweep_view("tuned", {"losses": []}) is None


def test_targets_are_places_too() -> None:
    points = [["attention"], ["attention", "mlp"]]
    sweep = sweep_view("tuned", {"trials": [trial(1.0, rank=4, targets=t) for t in points]})
    assert sweep is not None
    assert sweep.rows == ("attention", "attention+mlp")


def test_a_trial_says_what_it_took_over() -> None:
    leg = {"step": 4, "point": {"learning_rate": 0.01}, "trial": "00001"}
    trials = [
        trial(1.0, learning_rate=0.012) | {"trial": "00000", "history": [leg]},
        trial(1.1, learning_rate=0.01) | {"trial": "00001", "history": []},
    ]
    sweep = sweep_view("tuned", {"trials": trials})
    assert sweep is not None
    assert [t.taken for t in sweep.trials] == [("trial 00001 at step 4 (learning_rate 0.01)",), ()]
    assert sweep.population
    assert not sweep_view("tuned", {"trials": trials[1:]}).population
