"""Fréchet distance, precision and recall, and the copy alarm, against other libraries and brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import betabinom
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from medunifier_cli.errors import DataError, MissingWeightsError
from medunifier_cli.evaluate.synthesis.image_sets import FolderImages
from medunifier_cli.evaluate.synthesis.inception import fid_and_kid, load_inception
from medunifier_cli.scores.image import frechet_distance, frechet_interval, precision_recall
from medunifier_cli.scores.privacy import correlation, nearest, nearness


def draw(n: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, width)) @ np.random.default_rng(9).normal(size=(width, width)) + shift


@pytest.mark.parametrize(("n", "m"), [(200, 150), (40, 12)], ids=["more", "fewer images than channels"])
def test_frechet_distance_is_torch_fidelitys(n: int, m: int) -> None:
    real, fake = draw(n, 20, 0), draw(m, 20, 1, 0.5)
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (real, fake)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_is_nought_for_a_set_and_itself_and_grows_with_a_shift() -> None:
    real = draw(100, 8, 0)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, real + 2.0) == pytest.approx(8 * 4.0)


def test_frechet_interval_holds_the_value_and_shrinks_with_more_images() -> None:
    real = draw(400, 6, 0)
    widths = []
    for n in (30, 300):
        fake = draw(n, 6, 2, 0.7)
        found = frechet_interval(real, fake, draws=60)
        assert found.low <= frechet_distance(real, fake) <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_precision_and_recall_by_a_loop() -> None:
    real, fake = draw(60, 3, 0), draw(50, 3, 1, 1.0)

    def within(points: np.ndarray, manifold: np.ndarray) -> float:
        hits = 0
        for point in points:
            for other in manifold:
                reach = sorted(np.linalg.norm(manifold - other, axis=1))[3]
                if np.linalg.norm(point - other) <= reach:
                    hits += 1
                    break
        return hits / len(points)

    found = precision_recall(real, fake)
    assert found.precision == within(fake, real)
    assert found.recall == within(real, fake)
    assert 0 < found.precision < 1


def test_sets_that_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="one width"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(DataError, match="two or more"):
        frechet_distance(np.zeros((5, 3)), np.zeros((1, 3)))
    with pytest.raises(DataError, match="not finite"):
        frechet_distance(np.zeros((5, 3)), np.full((5, 3), np.nan))


def test_probability_of_a_share_is_the_beta_binomials() -> None:
    random = np.random.default_rng(0)
    heldout = random.random(500)
    judged = np.concatenate([random.random(80), np.full(4, -1.0)])
    found = nearness(judged, heldout)
    assert found.threshold == np.sort(heldout)[4]
    count = (judged < found.threshold).sum()
    assert found.share == count / 84
    assert found.p == pytest.approx(betabinom(84, 5, 496).sf(count - 1), rel=1e-9)


def test_unseen_images_hardly_ever_ring_and_copies_do() -> None:
    random = np.random.default_rng(1)
    alarms = sum(nearness(random.gamma(3, size=60), random.gamma(3, size=90)).p < 0.05 for _ in range(400))
    assert alarms / 400 < 0.09  # 5 % by construction
    assert nearness(random.gamma(3, size=60) * 0.01, random.gamma(3, size=90)).p < 1e-6


def test_nearest_and_correlation_by_brute_force() -> None:
    train, query = draw(50, 4, 0), draw(7, 4, 1)
    index, distance = nearest(query, train, 3)
    for row in range(7):
        far = np.linalg.norm(train - query[row], axis=1)
        assert index[row].tolist() == np.argsort(far)[:3].tolist()
        assert distance[row] == pytest.approx(np.sort(far)[:3])
    random = np.random.default_rng(2)
    image, others = random.integers(0, 256, (6, 6)), random.integers(0, 256, (5, 6, 6))
    expected = [np.corrcoef(image.ravel(), other.ravel())[0, 1] for other in others]
    assert correlation(image, others) == pytest.approx(expected)
    assert correlation(image, np.full((1, 6, 6), 7)) == [0.0]


def test_fid_and_kid_are_those_torch_fidelity_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inception of random weights: the same folders through us and through its front door."""
    from torch_fidelity import calculate_metrics
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    torch.save({}, tmp_path / "empty.pth")
    with monkeypatch.context() as patch:
        patch.setattr(Network, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = Network("x", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    weights = tmp_path / "inception.pth"
    torch.save(network.state_dict(), weights)
    random = np.random.default_rng(0)
    for side, high in (("real", 256), ("fake", 200)):
        (tmp_path / side).mkdir()
        for number in range(5):
            image = random.integers(0, high, (16, 16), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / side / f"{number}.png")
    expected = calculate_metrics(
        input1=str(tmp_path / "real"), input2=str(tmp_path / "fake"), fid=True, kid=True, kid_subset_size=5,
        feature_extractor_weights_path=str(weights), cuda=False, verbose=False, rng_seed=3, save_cpu_ram=True,
    )  # fmt: skip
    ours = load_inception(str(weights), torch.device("cpu"))
    sides = [ours.features(FolderImages(tmp_path / side, 16)) for side in ("real", "fake")]
    fid, kid, deviation = fid_and_kid(*sides, seed=3)
    assert fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert kid == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert deviation == pytest.approx(expected["kernel_inception_distance_std"], abs=1e-6)


def test_missing_and_damaged_inception_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"no Inception weights; fetch https://.* to .*no-such.pth"):
        load_inception(str(tmp_path / "no-such.pth"), torch.device("cpu"))
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(MissingWeightsError, match="damaged"):
        load_inception(str(tmp_path / "torn.pth"), torch.device("cpu"))
