import numpy as np

from deit_tf import mixing


def test_smoothing_is_the_published():
    labels = mixing.smooth_labels([3, 0], 1000, 0.1).numpy()
    assert labels.shape == (2, 1000)
    np.testing.assert_allclose(labels[0, 3], 0.9001, rtol=1e-6)
    np.testing.assert_allclose(labels[0, 4], 0.0001, rtol=1e-6)
    np.testing.assert_allclose(labels.sum(-1), 1.0, rtol=1e-5)


def test_no_smoothing_is_one_hot():
    np.testing.assert_array_equal(mixing.smooth_labels([1], 3, 0.0), [[0, 1, 0]])
