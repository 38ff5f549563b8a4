"""Where positions lie on a picture, a video or a sound, against loops over pixels and moments."""

import numpy as np
import pytest
import torch

from mmlens.grid import Grid, Tiles, Timeline, finest

WIDTH, HEIGHT = 20, 15
PLAIN = Grid(3, 4, (0.0, 0.0, 20.0, 15.0), (WIDTH, HEIGHT))
CROPPED = Grid(3, 4, (1.3, 2.7, 18.9, 14.1), (WIDTH, HEIGHT))
PADDED = Grid(4, 4, (0.0, -2.5, 20.0, 17.5), (WIDTH, HEIGHT))
LINES = Grid(3, 4, (1.3, 2.7, 18.9, 14.1), (WIDTH, HEIGHT), newline=True)
GAPS = Grid(
    2,
    3,
    (1.0, 0.0, 19.0, 15.0),
    (WIDTH, HEIGHT),
    rows_at=((0.0, 7.0), (8.0, 15.0)),
    columns_at=((1.0, 6.5), (7.0, 12.5), (13.5, 19.0)),
)
LONE = Grid(1, 0, (0.0, 0.0, 20.0, 15.0), (WIDTH, HEIGHT), newline=True)
FRAMES = Grid(3, 4, (0.0, 0.0, 20.0, 15.0), (WIDTH, HEIGHT), frames=(1, 3))
GRIDS = {"plain": PLAIN, "cropped": CROPPED, "padded": PADDED, "newlines": LINES, "gaps": GAPS, "lone newline": LONE}
TILES = Tiles((PLAIN, LONE, CROPPED, LINES), (WIDTH, HEIGHT))


def cells(grid):
    """Return the box of every position by two loops, None for those that end a row."""
    left, top, right, bottom = grid.region
    boxes = []
    for row in range(grid.rows):
        down = (bottom - top) / grid.rows
        high, low = grid.rows_at[row] if grid.rows_at else (top + row * down, top + (row + 1) * down)
        for column in range(grid.columns):
            across = (right - left) / grid.columns
            near, far = (
                grid.columns_at[column] if grid.columns_at else (left + column * across, left + (column + 1) * across)
            )
            boxes.append((near, high, far, low))
        boxes += [None] * grid.newline
    return boxes


def covered(box, mask):
    """Return the fraction of a box that a mask of pixels covers, pixel by pixel."""
    if box is None:
        return 0.0
    left, top, right, bottom = box
    area = 0.0
    for y, x in np.argwhere(mask):
        area += max(0.0, min(right, x + 1) - max(left, x)) * max(0.0, min(bottom, y + 1) - max(top, y))
    return area / ((right - left) * (bottom - top))


def some(seed=0, *frames):
    return np.random.default_rng(seed).random((*frames, HEIGHT, WIDTH)) < 0.4


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_boxes_go_row_by_row_and_a_position_that_ends_a_row_has_none(grid):
    truth = cells(grid)
    assert len(grid) == len(truth)
    for index, box in enumerate(truth):
        assert grid.box(index) == (box if box is None else pytest.approx(box))
    for index in (-1, len(grid)):
        with pytest.raises(IndexError, match=rf"positions 0 to {len(grid) - 1} .*, got {index}"):
            grid.box(index)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_point_belongs_to_the_box_around_it_and_to_none_outside(grid):
    boxes = cells(grid)
    for x in np.arange(-3.25, WIDTH + 4, 0.5):
        for y in np.arange(-3.25, HEIGHT + 4, 0.5):
            around = [i for i, box in enumerate(boxes) if box and box[0] <= x < box[2] and box[1] <= y < box[3]]
            assert grid.index(x, y) == (around[0] if around else None)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_overlap_is_the_covered_area_of_each_box(grid):
    mask = some()
    np.testing.assert_allclose(
        grid.overlap(torch.tensor(mask)).numpy(), [covered(box, mask) for box in cells(grid)], atol=1e-12
    )
    assert not grid.overlap(torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)).any()
    inside = [box is not None and min(box[:2]) >= 0 and box[3] <= HEIGHT for box in cells(grid)]
    full = grid.overlap(torch.ones(HEIGHT, WIDTH, dtype=torch.bool))
    np.testing.assert_allclose(full[inside].numpy(), 1.0)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_box_of_whole_pixels_overlaps_as_its_mask_does(grid):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:11, 4:17] = True
    torch.testing.assert_close(
        grid.box_overlap((4.0, 3.0, 17.0, 11.0)), grid.overlap(torch.tensor(mask)), atol=1e-12, rtol=0
    )
    assert not grid.box_overlap((WIDTH + 9.0, 0.0, WIDTH + 10.0, 5.0)).any()
    assert not grid.box_overlap((9.0, 9.0, 5.0, 5.0)).any()  # inside out: no area


@pytest.mark.parametrize("shape", [(WIDTH, HEIGHT), (HEIGHT, WIDTH + 1), (2, HEIGHT, WIDTH)])
def test_a_mask_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=rf"is \[{HEIGHT}, {WIDTH}\] \(height, width\), got \["):
        PLAIN.overlap(torch.ones(shape, dtype=torch.bool))


def test_painted_values_stand_where_their_boxes_are(grid=LINES):
    values = torch.arange(2 * len(grid)).view(2, -1)
    [(own, painted)] = grid.painted(values)
    assert own is grid and painted.shape == (2, 3, 4)
    for index in range(len(grid)):
        row, column = divmod(index, 5)
        assert column == 4 or painted[1, row, column] == values[1, index]
    assert LONE.painted(torch.zeros(1)) == []


# ---------------------------------------------------------------- videos


def test_a_mask_of_frames_counts_the_mean_of_a_positions_own():
    masks = some(1, 4)
    truth = [np.mean([covered(box, mask) for mask in masks[1:3]]) for box in cells(FRAMES)]
    np.testing.assert_allclose(FRAMES.overlap(torch.tensor(masks)).numpy(), truth, atol=1e-12)
    still = torch.tensor(masks[0])
    torch.testing.assert_close(FRAMES.overlap(still), PLAIN.overlap(still))


def test_a_mask_without_a_positions_frames_is_refused():
    with pytest.raises(ValueError, match="at least 3 frames, got \\[2, 15, 20\\]"):
        FRAMES.overlap(torch.ones(2, HEIGHT, WIDTH, dtype=torch.bool))


# ---------------------------------------------------------------- tiles


def test_tiles_are_their_grids_one_after_the_other():
    boxes = [box for grid in TILES.grids for box in cells(grid)]
    owners = [(tile, inner) for tile, grid in enumerate(TILES.grids) for inner in range(len(grid))]
    assert len(TILES) == len(boxes) == 12 + 1 + 12 + 15
    for index, (box, owner) in enumerate(zip(boxes, owners, strict=True)):
        assert TILES.tile(index) == owner
        assert TILES.box(index) == (box if box is None else pytest.approx(box))
    for index in (-1, len(TILES)):
        with pytest.raises(IndexError, match="positions 0 to 39, got"):
            TILES.tile(index)
    assert TILES.region == (0.0, 0.0, 20.0, 15.0)


def test_a_point_belongs_to_one_position_of_each_tile_that_saw_it():
    boxes = [box for grid in TILES.grids for box in cells(grid)]
    for x, y in [(0.5, 0.5), (5.0, 5.0), (10.2, 7.7), (19.5, 14.5), (-1.0, 3.0), (18.0, 14.0)]:
        around = [i for i, box in enumerate(boxes) if box and box[0] <= x < box[2] and box[1] <= y < box[3]]
        assert TILES.indices(x, y) == around
        area = {i: (boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1]) for i in around}
        assert TILES.index(x, y) == min(around, key=lambda i: (area[i], i), default=None)


def test_overlaps_of_tiles_are_their_grids_own():
    mask = some(2)
    truth = [covered(box, mask) for grid in TILES.grids for box in cells(grid)]
    np.testing.assert_allclose(TILES.overlap(torch.tensor(mask)).numpy(), truth, atol=1e-12)
    box = (2.5, 3.25, 11.0, 9.75)
    torch.testing.assert_close(TILES.box_overlap(box), torch.cat([grid.box_overlap(box) for grid in TILES.grids]))


def test_painted_tiles_come_coarse_first_and_the_finest_are_within_a_factor_of_two():
    small = Grid(6, 8, (0.0, 0.0, 20.0, 15.0), (WIDTH, HEIGHT))
    tiles = Tiles((small, LONE, PLAIN), (WIDTH, HEIGHT))
    assert [grid for grid, _ in tiles.painted(torch.arange(float(len(tiles))))] == [PLAIN, small]
    assert tiles.painted(torch.arange(len(tiles)))[0][1].flatten().tolist() == list(range(49, 61))
    assert finest(tiles) == (small,)
    assert finest(TILES) == (PLAIN, CROPPED, LINES) and finest(PLAIN) == (PLAIN,)


# ---------------------------------------------------------------- sounds

LINE = [Timeline(25, 0.04), Timeline(750, 0.04), Timeline(7, 1 / 3)]


@pytest.mark.parametrize("line", LINE)
def test_positions_follow_each_other_and_a_moment_belongs_to_the_one_around_it(line):
    edges = [line.seconds(index) for index in range(len(line))]
    assert edges[0][0] == 0.0
    for index, (start, stop) in enumerate(edges):
        assert start == index * line.step and stop == (index + 1) * line.step
        assert line.index(start) == line.index((start + stop) / 2) == line.index(float(np.nextafter(stop, 0.0))) == index
    for second in (-1e-9, edges[-1][1], np.inf, -np.inf, np.nan, 1e9):
        assert line.index(second) is None
    for index in (-1, len(line)):
        with pytest.raises(IndexError, match=f"positions 0 to {len(line) - 1}, got {index}"):
            line.seconds(index)


@pytest.mark.parametrize("line", LINE)
@pytest.mark.parametrize(("start", "stop"), [(0.1, 0.33), (-1.0, 0.05), (0.5, 99.0), (0.2, 0.2), (0.4, 0.1), (0.61, 0.615)])
def test_the_overlap_with_a_stretch_is_the_fraction_of_each_positions_time(line, start, stop):
    truth = []
    for index in range(len(line)):
        begin, end = index * line.step, (index + 1) * line.step
        truth.append(max(0.0, min(end, stop) - max(begin, start)) / line.step)
    np.testing.assert_allclose(line.overlap(start, stop).numpy(), truth, atol=1e-9)


@pytest.mark.parametrize("place", [*GRIDS.values(), FRAMES, TILES, LINE[0]])
def test_a_place_is_saved_and_loaded_whole(place, tmp_path):
    place.save(tmp_path / "place")
    assert type(place).load(tmp_path / "place") == place
