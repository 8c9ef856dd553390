"""Boxes: frames at their places, over the overlay, in the photo's pixels."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.errors import OptionError
from onnxplain.imaging.heatmap import overlay, picture, with_boxes
from onnxplain.imaging.heatmap.boxes import FRAME

GREY = np.full((200, 300, 3), 120, np.uint8)


def yellow(image):
    return (image == FRAME).all(2)


def test_a_frame_is_where_the_box_is():
    drawn = with_boxes(GREY, [(50, 60, 150, 180)])
    assert (GREY == 120).all()
    rows, columns = np.nonzero(yellow(drawn))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((60, 180, 50, 150), abs=1)
    assert (drawn[64:176, 54:146] == 120).all()
    assert (drawn[:56] == 120).all()


def test_labels_are_seen_even_at_the_border():
    for box in ((-20, -30, 100, 90, "cat"), (290, 10, 400, 60, "cat"), (10, 150, 100, 260, "cat")):
        drawn = with_boxes(GREY, [box])
        bare = with_boxes(GREY, [box[:4]])
        label = np.argwhere((drawn != bare).any(2))
        assert label.shape[0] > 150
        assert (drawn[tuple(label.T)] < 60).all(1).sum() > 10  # letters


def test_a_picture_with_boxes_is_the_overlay_with_frames():
    values = np.random.default_rng(0).normal(size=(3, 20, 30))
    boxes = [(10, 20, 110, 120, "a"), (30, 30, 200, 150, "b")]
    drawn = picture(values, GREY, boxes=boxes)
    np.testing.assert_array_equal(drawn, with_boxes(picture(values, GREY), boxes))
    np.testing.assert_array_equal(
        picture(values, GREY, boxes=np.array([(10, 20, 110, 120)])),
        with_boxes(picture(values, GREY), [(10, 20, 110, 120)]),
    )
    assert overlay(np.zeros((2, 2)), GREY).shape == drawn.shape


@pytest.mark.parametrize(
    "box",
    [(1, 2, 3), (3, 2, 1, 4), (1, 2, 1, 4), (1, 2, 3, float("nan")), (1, 2, 3, 4, "a", "b"), ("a", 2, 3, 4), 5],
)
def test_what_is_no_box(box):
    with pytest.raises(OptionError, match=r"is not a box\nA box is \(x0, y0, x1, y1, label\)"):
        with_boxes(GREY, [box])


def test_boxes_need_a_photo():
    with pytest.raises(OptionError, match="image="):
        picture(np.ones((4, 4)), boxes=[(0, 0, 1, 1)])


def test_huge_boxes_are_clipped():
    np.testing.assert_array_equal(with_boxes(GREY, [(-1e12, -1e12, 1e12, 1e12)]), GREY)


def test_what_is_outside_is_not_seen():
    for box in ((-50, 10, -20, 60), (310, 10, 400, 60), (10, 210, 50, 250), (10, -80, 50, -20)):
        np.testing.assert_array_equal(with_boxes(GREY, [(*box, "cat")]), GREY)
