"""A made-up report of any number of classes, with pictures, without a run."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from kdfm_ray.jobs.pictures import FATES, thumbnail
from kdfm_ray.report.verdict import verdict
from kdfm_ray.training.scores import compare, score, score_calibrated

STAGES = ("data", "baseline", "outer", "label", "select", "inner", "evaluate", "pictures")
ROLES = {"labeled_only": 0.4, "outer": 0.6, "inner": 0.8}  # how often the true class is found


class Made:
    """Its parts; ``report`` is complete, and may be made poorer by a test."""

    def __init__(self, classes, *, truth=True, baseline=True, test=True, clusterer="dec", n=600):
        self.random = np.random.default_rng(0)
        self.classes = [f"class <{k}> & more" if k % 3 else f"c{k}" for k in range(classes)]
        roles = [role for role in ROLES if baseline or role != "labeled_only"]
        true = self.random.integers(0, classes, n)
        probs = {role: self._probs(true, ROLES[role]) for role in roles}
        right = {role: found.argmax(axis=1) == true for role, found in probs.items()}
        accuracy = {role: float(found.mean()) for role, found in right.items()}
        stages = [stage for stage in STAGES if baseline or stage != "baseline"]
        self.report = {
            "test_accuracy": accuracy if test else dict.fromkeys(roles),
            "val_accuracy": accuracy,
            "scored_on": "test" if test else "val",
            "scores": {role: self._score(found, true) for role, found in probs.items()},
            "compared": {r: compare(right["inner"], right[r]) for r in roles if r != "inner"},
            "selection": self._selection(truth, clusterer),
            "overridden": {
                "looked_at": 100,
                "count": 5,
                "trusted_right": 0.2 if truth else None,
                "own_right": 0.8 if truth else None,
            },
            "data": {
                "name": "made up",
                "classes": self.classes,
                "image_shape": [32, 32, 3],
                "labeled": 4 * classes,
                "unlabeled": 1000,
                "val": 100,
                "test": n if test else None,
                "skipped": [{"path": "pets/<odd> name.png", "reason": "zero bytes"}],
                "duplicates": [
                    {
                        "paths": ["pets/<cat>/a.png", "test/cat/a.png"],
                        "sets": {"labeled": 1, "test": 1},
                        "classes": ["c0"],
                        "done": "left out of training",
                    },
                    {
                        "paths": [f"spare/{number}.png" for number in range(10)],
                        "sets": {"labeled": 2, "unlabeled": 1_200},
                        "classes": ["c0", "class <1> & more"],
                        "done": "kept once, unlabeled",
                    },
                ],
                "duplicate_counts": {"unlabeled_copies": 1234},
            },
            "stages": dict.fromkeys(stages, 100.0),
            "images_per_second": {"outer": 1234.5, "inner": 1200.0, "label": 5000.0},
            "reused": ["data"],
            "total_seconds": 800.0,
            "numerics": {"choice": "fp32 channels_last", "how": "measured"},
            "resources": {"cpus": 2, "gpus": 0, "workers": 2, "cpus_per_worker": 1},
            "command": "kdfm train --data.name digits --out 'a folder with spaces'",
            "seed": 0,
            "split_seed": 0,
            "config_hash": "c0ffee",
            "split_hash": "f" * 64,
            "versions": {"python": "3.11", "torch": "2.9"},
            "hardware": {"cpu": "a CPU", "cores": 2, "memory_gb": 8.0, "gpus": [], "system": "x"},
            "warnings": ["something <odd> happened: try another seed"],
        }
        self.report["verdict"] = verdict(self.report)
        self.lines = self._lines(roles, truth)
        self.pictures = self._pictures(classes, truth, clusterer)

    def _score(self, probs, true):
        return score(probs, true) | {"calibrated": score_calibrated(probs, true, probs, true)}

    def _probs(self, true, share):
        classes = len(self.classes)
        found = np.where(
            self.random.random(len(true)) < share, true, self.random.integers(0, classes, len(true))
        )
        logits = self.random.normal(size=(len(true), classes))
        logits[np.arange(len(true)), found] += 6
        probs = np.exp(logits)
        return (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)

    def _selection(self, truth, clusterer):
        classes = len(self.classes)

        def kept(share, precision):
            known = precision if truth else None
            per_class = {"size": [int(50 * share)] * classes, "precision": [known] * classes}
            size = 50 * classes * share
            return {
                "size": int(size),
                "coverage": share,
                "precision": known,
                "per_class": per_class,
            }

        return {
            "clusterer": clusterer,
            "tau_select": 0.8,
            "filters": {
                "all": kept(1.0, 0.7),
                "confidence": kept(0.6, 0.8),
                "agreement": kept(0.5, 0.9),
            },
            "nmi": 0.7,
            "agreement": {"start": 0.7, "end": None if clusterer == "none" else 0.8},
            "fallback": clusterer == "dec",
        }

    def _lines(self, roles, truth):
        lines = []
        for role, stage in (("labeled_only", "baseline"), ("outer", "outer"), ("inner", "inner")):
            if role not in roles:
                continue
            for step in range(100, 2001, 100):
                line = {"stage": stage, "step": step, "loss": 2 / (1 + step / 500)}
                if stage != "baseline":
                    line |= {"mask_rate": step / 2500, "trusted_rate": 0.3, "override_rate": 0.01}
                    line["pseudo_label_precision"] = 0.9 if truth else None
                lines.append(line)
                lines.append({"stage": stage, "step": step, "val_accuracy": step / 2500})
        return lines

    def _pictures(self, classes, truth, clusterer):
        count, middle = 800, self.random.random((classes, 2))
        predicted = self.random.integers(0, classes, count)
        place = middle[predicted] + self.random.normal(scale=0.03, size=(count, 2))
        place = (place - place.min(axis=0)) / np.ptp(place, axis=0)
        fates = ["labeled", "trusted", "unsure", *(["disagreeing"] * (clusterer != "none"))]
        groups = {}
        for name in (*FATES[1:], "overridden"):
            shown = 0 if name == "confident" or (clusterer == "none" and name == FATES[3]) else 16
            images = [self._example(classes, truth, name) for _ in range(shown)]
            groups[name] = {"count": 10 * shown, "images": images}
        return {
            "labeled_per_class": [4] * classes,
            "map": {
                "method": "t-SNE",
                "of": 1000,
                "x": place[:, 0].tolist(),
                "y": place[:, 1].tolist(),
                "predicted": predicted.tolist(),
                "fate": self.random.choice(fates, count).tolist(),
            },
            "examples": groups,
            "overridden": self.report["overridden"],
        }

    def _example(self, classes, truth, name):
        image = self.random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        found = {
            "png": thumbnail(image),
            "predicted": int(self.random.integers(classes)),
            "confidence": 0.93,
            "truth": int(self.random.integers(classes)) if truth else -1,
        }
        own = {"own": classes - 1, "own_confidence": 0.99}
        return found | own if name == "overridden" else found


@pytest.fixture
def made():
    """Makes one; see ``Made``."""
    return Made


@pytest.fixture
def read_png():
    """The pixels of a PNG in base64."""

    def read(code):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))

    return read
