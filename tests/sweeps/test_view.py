"""What a sweep prints of its trials' events."""

import io

from rich.console import Console

from kdfm_ray.sweeps.view import SweepView


def test_what_trials_share_is_said_once_and_what_is_their_own_with_their_name():
    text = io.StringIO()
    with SweepView(Console(file=text, width=200)) as view:
        for trial in ("t0", "t1"):
            view({"stage": "", "note": "labeled images: 0 10, 1 10", "of": "data", "trial": trial})
            view({"stage": "inner", "warning": "few are trusted", "trial": trial})
            view({"stage": "", "note": "waiting for a node", "trial": trial})
        view({"stage": "", "note": "labeled images: 0 40, 1 40", "of": "data", "trial": "t2"})
    assert text.getvalue().splitlines() == [
        "labeled images: 0 10, 1 10",
        "warning: KD-FixMatch (inner) network: few are trusted",
        "t0: waiting for a node",
        "t1: waiting for a node",
        "labeled images: 0 40, 1 40",
    ]
