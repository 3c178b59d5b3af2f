"""The phantom's images are reproducible, look like radiographs and show the findings of their labels."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medunifier_plugins.phantom import lesions
from medunifier_plugins.phantom.anatomy import make_anatomy
from medunifier_plugins.phantom.case import CLASSES, EXTENTS, SEVERITIES, Case, make_case
from medunifier_plugins.phantom.dataset import Phantom, make_record
from medunifier_plugins.phantom.drawing import attenuation, draw

from medunifier_cli.data.contract import DataError, DrawnImage

DEFAULTS = {name: option.default for name, option in Phantom.options.items()}
NOISE = 0.012 * 255
"""Grey levels of noise at 64 x 64, as the data set's documentation states."""


def _singles(name: str, n: int, split: str = "train") -> list[Case]:
    cases = (make_case(3, split, i) for i in itertools.count())
    return list(itertools.islice((c for c in cases if [f.name for f in c.findings] == [name]), n))


def _healthy(case: Case) -> Case:
    """The same patient, film and noise without the findings."""
    return replace(case, findings=())


def _change(case: Case) -> np.ndarray:
    """What the findings add to the image, in grey levels."""
    return draw(case, 64).astype(float) - draw(_healthy(case), 64)


def _lesions_alone(case: Case) -> np.ndarray:
    """What the findings add to the lungs of this very chest, raised domes and large hearts aside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesions, "opacity", lambda case, chest, canvas: np.zeros_like(canvas.x))
        clear = draw(case, 64).astype(float)
    return draw(case, 64) - clear


def _digest(split: str, number: int, size: int) -> str:
    record = make_record(5, split, number)
    assert isinstance(record.image, DrawnImage)
    text = json.dumps([record.sections, record.labels, record.facts])
    return hashlib.sha256(record.image.draw(size).tobytes() + text.encode()).hexdigest()


def test_same_bytes_in_another_process_and_order():
    places = [(split, i, size) for split in ("train", "test") for i in (0, 7, 31) for size in (64, 96)]
    code = f"import test_phantom as t; [print(t._digest(*p)) for p in {places!r}]"
    here = Path(__file__).parent  # by its folder: some installed packages bring a package `tests` along
    there = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    again = [_digest(*place) for place in reversed(places)][::-1]
    assert there.stdout.split() == again
    assert len(set(again)) == len(places)


def test_number_of_images_changes_none_of_them():
    few = Phantom().plan(Path("-"), DEFAULTS | {"train": 5, "valid": 0, "test": 0})
    many = Phantom().plan(Path("-"), DEFAULTS | {"train": 10**9})
    assert many.total == 10**9 + 1000
    assert list(few.records) == list(itertools.islice(many.records, 5))


def test_splits_and_seeds_share_no_patient():
    cases = itertools.product((0, 1), Phantom.splits, range(20))
    images = [draw(make_case(*case), 16).tobytes() for case in cases]
    assert len(set(images)) == len(images)
    plan = Phantom().plan(Path("-"), DEFAULTS | {"train": 50, "valid": 50, "test": 50})
    records = list(plan.records)
    for field in ("key", "subject", "study", "source"):
        assert len({getattr(r, field) for r in records}) == 150
    assert Counter(r.split for r in records) == {"train": 50, "valid": 50, "test": 50}


@pytest.mark.parametrize("size", [32, 64, 224, 333])
def test_any_size_is_rendered_and_shows_the_same_patient(size: int):
    image = pickle.loads(pickle.dumps(make_record(0, "train", 4).image)).draw(size)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    cells = np.array_split(np.arange(size), 16)
    small = np.array([[image[np.ix_(r, c)].mean() for c in cells] for r in cells])
    reference = make_record(0, "train", 4).image.draw(512).reshape(16, 32, 16, 32).mean((1, 3))
    assert np.abs(small - reference).mean() < 4


def test_half_have_one_finding_and_all_five_equally_often():
    plan = Phantom().plan(Path("-"), DEFAULTS)
    kinds = {split: Counter() for split in Phantom.splits}
    for record in plan.records:
        positive = [c for c in CLASSES if record.labels[c] == 1]
        assert record.labels["No Finding"] == (not positive)
        assert set(record.labels.values()) <= {0.0, 1.0}
        assert {f["name"] for f in record.facts["findings"]} == set(positive)
        one = Phantom().class_of(record.labels)
        kinds[record.split][len(positive) if one is None else CLASSES[one]] += 1
    assert {kinds["train"][c] for c in CLASSES} == {300}
    assert {kinds["test"][c] for c in CLASSES} == {50}
    assert kinds["train"][0] == 600
    assert kinds["train"][2] + kinds["train"][3] == 900
    totals = Counter(f.name for i in range(3000) for f in make_case(0, "train", i).findings)
    assert max(totals.values()) < 1.15 * min(totals.values())


@pytest.mark.parametrize("name", CLASSES)
def test_a_finding_shows_on_its_side_and_in_its_zone(name: str):
    for case in _singles(name, 30):
        (finding,) = case.findings
        change = _change(case)
        # One patch of a patch-8 transformer must carry it, far above the noise that averaging leaves (1/8).
        patches = np.abs(change.reshape(8, 8, 8, 8).mean((1, 3)))
        assert patches.max() > 2.5 * NOISE, finding
        weight = np.abs(change) * (np.abs(change) > NOISE)
        viewers_left = weight[:, :32].sum() / weight.sum()
        if finding.side == "right":
            assert viewers_left > 0.85, finding
        elif finding.side == "left":
            assert viewers_left < 0.15, finding
        elif finding.side == "bilateral":
            assert 0.25 < viewers_left < 0.75, finding
        if finding.zone:
            weight = np.abs(_lesions_alone(case))
        chest = make_anatomy(_healthy(case))
        height = weight.sum(1) @ (np.arange(64) + 0.5) / 64 / weight.sum()
        third = (height - chest.shift[1] - chest.top) / (chest.domes["right"] - chest.top) * 3
        if finding.zone:
            low = ("upper", "mid", "lower").index(finding.zone)
            assert low - 0.1 < third < low + 1.1, finding


@pytest.mark.parametrize("name", CLASSES)
def test_a_larger_finding_changes_more_of_the_same_chest(name: str):
    sizes = SEVERITIES if name in ("Cardiomegaly", "Edema") else EXTENTS
    for case in _singles(name, 12):
        graded = [replace(case, findings=(replace(case.findings[0], size=size),)) for size in sizes]
        small, middle, large = (np.abs(_change(c)).sum() for c in graded)
        assert 1.15 * small < middle < large / 1.1, case.findings


def test_findings_brighten_and_leave_the_other_lung_alone():
    for name in ("Pneumonia", "Atelectasis", "Pleural Effusion"):
        for case in (c for c in _singles(name, 30) if c.findings[0].side == "right"):
            change = _change(case)
            assert change[:, :30].sum() > 0
            assert np.abs(change[:, 38:]).max() <= 1


def test_one_finding_does_not_move_another():
    cases = [c for c in (make_case(1, "train", i) for i in range(200)) if len(c.findings) == 3]
    for case in cases[:8]:
        alone = replace(case, findings=case.findings[:1])
        again = make_case(case.seed, case.split, case.number)
        np.testing.assert_array_equal(draw(case, 48), draw(again, 48))
        assert make_anatomy(alone).middle == make_anatomy(case).middle


def test_heart_is_wider_than_half_the_chest_only_in_cardiomegaly():
    for i in range(300):
        case = make_case(0, "valid", i)
        chest = make_anatomy(case)
        inside = np.ptp(np.concatenate([outline[:, 0] for outline in chest.lungs.values()]))
        ratio = np.ptp(chest.heart()[:, 0]) / inside
        enlarged = [f for f in case.findings if f.name == "Cardiomegaly"]
        assert ratio == pytest.approx(make_record(0, "valid", i).facts["heart_ratio"], abs=0.01)
        assert (ratio > 0.52) if enlarged else (ratio < 0.48)


def test_heart_measured_in_the_image_grows_with_severity():
    """Width of what is not lung between the two lungs, at the height where the heart is widest."""
    for case in _singles("Cardiomegaly", 10):
        widths = []
        for size in SEVERITIES:
            ill = replace(case, findings=(replace(case.findings[0], size=size),))
            row = slice(130, 150)  # of 224: below the hila, above the domes
            lung, healthy = (attenuation(c, 224)[row].mean(0) < 0.42 for c in (ill, _healthy(case)))
            widths += [224 - lung[20:204].sum()]
        assert 224 - healthy[20:204].sum() < widths[0] < widths[1] < widths[2]


@pytest.fixture(scope="module")
def train_64() -> np.ndarray:
    return np.stack([draw(make_case(0, "train", i), 64) for i in range(200)])


def test_no_black_corner_and_no_flat_border(train_64: np.ndarray):
    """A corner filled after a rotation would be constant, usually 0; the air next to the neck is neither."""
    assert train_64.min() > 2
    for rows, columns in itertools.product((slice(0, 3), slice(-3, None)), repeat=2):
        corner = train_64[:, rows, columns].reshape(200, -1)
        assert corner.std(1).min() > 0.5
        assert (corner.mean(1) < 40).mean() < (0.7 if rows.start == 0 else 0.2)
    assert (train_64 == 255).mean() < 0.01


def test_statistics_of_the_images(train_64: np.ndarray):
    images = train_64 / 255
    assert 0.55 < images.mean() < 0.70
    error = ((images - images.mean(0)) ** 2).mean()
    assert 20 < -10 * np.log10(error) < 22, "PSNR of the mean image: the baseline of every reconstruction"
    # White noise of deviation s has second differences of deviation s * sqrt(6); the belly is smooth.
    belly = images[:, -8:, 12:52]
    noise = np.diff(belly, 2, axis=2).std() / np.sqrt(6)
    assert 0.010 < noise < 0.015


def test_lungs_are_dark_belly_is_white_heart_is_on_the_viewers_right(train_64: np.ndarray):
    normal = np.mean(
        [draw(c, 64) for c in (make_case(0, "train", i) for i in range(100)) if not c.findings], 0
    )
    lungs = (normal[16:40, 12:22].mean() + normal[16:40, 44:54].mean()) / 2
    assert lungs < 0.7 * normal[56:, 20:44].mean()
    assert normal[38:44, 36:42].mean() > 1.3 * normal[38:44, 22:28].mean()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"train": -1}, "train=-1"), ({"seed": -3}, "seed=-3"), ({"train": 0, "valid": 0, "test": 0}, "all 0")],
)
def test_impossible_options_are_refused_in_one_line(wrong: dict[str, int], word: str):
    with pytest.raises(DataError, match=word) as error:
        Phantom().plan(Path("-"), DEFAULTS | wrong)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_every_class_can_be_learned_from_pixels():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    def load(split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        cases = [make_case(0, split, i) for i in range(n)]
        labels = [[name in {f.name for f in c.findings} for name in CLASSES] for c in cases]
        return np.stack([draw(c, 64).ravel() for c in cases]) / 255, np.array(labels)

    (x, y), (x_test, y_test) = load("train", 2000), load("test", 500)
    mean = x.mean(0)
    for i, name in enumerate(CLASSES):
        model = LogisticRegression(C=0.01, max_iter=300).fit(x - mean, y[:, i])
        assert roc_auc_score(y_test[:, i], model.decision_function(x_test - mean)) > 0.72, name
