from benchmarks.report import windows_table


def test_a_line_for_each_task_and_kind_in_their_order():
    def of(score: float) -> dict:
        medians = {"balanced_accuracy": score, "token": 0.6, "other": 0.5, "margin": score - 0.6}
        return {"n_scored": 3270, **{f"median_{name}": value for name, value in medians.items()}}

    figures = {
        "detection": {"neighbour": of(0.7), "random": of(0.72), "same_trigger": of(0.55)},
        "fuzzing": {"elsewhere": of(0.71)},
        "per_kind": 50,
    }
    assert windows_table(figures).splitlines()[2:] == [
        "| detection | random | 3,270 | 0.72 | 0.60 | 0.50 | +0.12 |",
        "| detection | same trigger | 3,270 | 0.55 | 0.60 | 0.50 | -0.05 |",
        "| detection | neighbour | 3,270 | 0.70 | 0.60 | 0.50 | +0.10 |",
        "| fuzzing | elsewhere | 3,270 | 0.71 | 0.60 | 0.50 | +0.11 |",
    ]
