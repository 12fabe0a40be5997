import itertools

import numpy as np
import pytest

from stages.evaluate.metrics import MAX_PSNR, is_scene_edit, l1, psnr, scene_oracle, ssim
from stages.starter.world import render, sample_edit, sample_scene


def noisy(image, amount, seed=0):
    noise = np.random.default_rng(seed).normal(0, amount, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_l1_and_psnr_by_hand():
    black, gray = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert l1(gray, black) == pytest.approx(0.2)
    assert psnr(gray, black) == pytest.approx(-20 * np.log10(0.2))
    assert psnr(gray, gray) == MAX_PSNR


def test_psnr_sees_only_the_mask():
    black, image = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    image[0] = 255
    kept = np.ones((4, 4), bool)
    kept[0] = False
    assert psnr(image, black, kept) == MAX_PSNR
    assert psnr(image, black, ~kept) == 0.0
    assert psnr(image, black, np.zeros((4, 4), bool)) is None


def test_unequal_sizes_are_refused():
    with pytest.raises(ValueError, match="unequal sizes"):
        l1(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8))


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    image = render(sample_scene(np.random.default_rng(0)))
    values = [ssim(noisy(image, amount), image) for amount in (0, 5, 20, 60)]
    assert values[0] == pytest.approx(1.0)
    assert values == sorted(values, reverse=True) and values[-1] < 0.5


def test_ssim_of_constants_by_hand():
    one, two = np.full((16, 16, 3), 100, np.uint8), np.full((16, 16, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(one, two) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


def test_ssim_is_the_mean_over_all_windows():
    """Window by window, of a picture that is higher than the bands in which it is computed."""
    first = np.random.default_rng(0).integers(0, 256, (300, 13, 3)).astype(np.uint8)
    second = noisy(first, 40)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for top, left, channel in itertools.product(range(290), range(3), range(3)):
        x, y = (image[top : top + 11, left : left + 11, channel].astype(np.float64) for image in (first, second))
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
        variances = (weights * (x - mean_x) ** 2).sum() + (weights * (y - mean_y) ** 2).sum()
        means = (2 * mean_x * mean_y + 2.55**2) / (mean_x**2 + mean_y**2 + 2.55**2)
        values.append(means * (2 * covariance + 7.65**2) / (variances + 7.65**2))
    assert ssim(first, second) == pytest.approx(np.mean(values), rel=1e-10)


def test_ssim_needs_its_window():
    assert ssim(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)) is None


def test_oracle_on_truth_and_copy():
    rng = np.random.default_rng(5)
    for _ in range(20):
        edit = sample_edit(sample_scene(rng), rng)
        source, target = render(edit.source), render(edit.target)
        assert is_scene_edit(edit.to_json())
        truth = scene_oracle(target, source, edit.to_json())
        copy = scene_oracle(source, source, edit.to_json())
        assert (truth["edit_success"], truth["preservation"], truth["whole_scene_right"]) == (1, 1, 1)
        assert copy["edit_success"] == copy["whole_scene_right"] == 0
        if edit.edit_type != "style":
            assert copy["psnr_unedited"] == MAX_PSNR


@pytest.mark.parametrize("metadata", ["", "null", "[]", "{}", "not json", '{"edit_type": "color"}', None])
def test_other_metadata_is_no_scene_edit(metadata):
    assert not is_scene_edit(metadata)
