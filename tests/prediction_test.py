import numpy as np

from serving import prediction

LABELS = ("ant", "bee", "cat", "dog")


def test_names_the_likeliest_first():
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.0, 0.2]], np.float32)
    first, second = prediction.likeliest(probabilities, LABELS, 2)
    assert first.class_ids == (3, 2)
    assert first.class_names == ("dog", "cat")
    assert first.scores == tuple(probabilities[0, [3, 2]].tolist())
    assert second.class_names == ("ant", "dog")
    assert (first.error, second.error) == ("", "")


def test_of_equal_ones_the_lower_number_is_first_as_in_tensorflow():
    import tensorflow as tf

    rng = np.random.RandomState(0)
    probabilities = rng.randint(0, 3, (50, 9)).astype(np.float32)
    for count in (1, 4, 9):
        found = prediction.likeliest(probabilities, range(9), count)
        expected = tf.math.top_k(probabilities, count).indices.numpy()
        assert [each.class_ids for each in found] == [tuple(row) for row in expected.tolist()]


def test_what_is_no_number_is_said():
    rows = np.array([[0.5, np.nan, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], np.float32)
    bad, good = prediction.likeliest(rows, LABELS, 2)
    assert bad.error == "the network's answer is no number; export it in float32"
    assert good.class_ids == (3, 2)


def test_no_more_classes_than_there_are():
    (found,) = prediction.likeliest(np.eye(4, dtype=np.float32)[:1], LABELS, 9)
    assert found.class_ids == (0, 1, 2, 3)
