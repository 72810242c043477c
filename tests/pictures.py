"""What is written in a figure, and where."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.text import Text


def boxes(figure):
    """The texts that are to be seen, with their bounding boxes in pixels."""
    figure.draw_without_rendering()
    hidden = set()
    for axes in figure.findobj(Axes):
        if not axes.axison:
            hidden |= {id(text) for axis in (axes.xaxis, axes.yaxis) for text in axis.findobj(Text)}
    for axis in figure.findobj(Axis):
        low, high = sorted(axis.get_view_interval())
        margin = 1e-9 * (high - low)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low - margin <= tick.get_loc() <= high + margin:
                hidden |= {id(tick.label1), id(tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return [(text, text.get_window_extent()) for text in texts if id(text) not in hidden]


def problems(figure):
    """Texts that leave the figure or lie on another; a slanted one's box says nothing of its neighbours."""
    seen, page = boxes(figure), figure.bbox
    found = [
        f"{text.get_text()!r} is cut"
        for text, box in seen
        if box.x0 < -1 or box.y0 < -1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1
    ]
    straight = [text.get_text() for text, _ in seen if text.get_rotation() in (0, 90)]
    corners = np.array([box.padded(-1).extents for text, box in seen if text.get_rotation() in (0, 90)])
    low, high = corners[:, None, :2], corners[:, None, 2:]
    overlap = (low.swapaxes(0, 1) < high).all(-1) & (low < high.swapaxes(0, 1)).all(-1)
    pairs = np.argwhere(np.triu(overlap, 1))
    return found + [f"{straight[a]!r} lies on {straight[b]!r}" for a, b in pairs]


def words(figure):
    """All texts, in one."""
    return "\n".join(text.get_text() for text, _ in boxes(figure))
