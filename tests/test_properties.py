"""What holds for every family, whatever the sizes and numbers of pictures, videos and sounds; no model is run."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import clip, picture, sound

from mmlens import Grid, Tiles, Timeline
from mmlens.families import family_of
from mmlens.inputs import MEDIA
from mmlens.media import Media, read_image, read_sound, read_video
from mmlens.testing import FAMILIES

few = settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # to look for the smallest failing case takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)
seeds, sides = st.integers(0, 9), st.integers(8, 110)
DRAW = {
    "image": st.tuples(seeds, sides, sides),
    "video": st.tuples(seeds, sides, sides, st.sampled_from([0.5, 2.0, 30.0])),
    "audio": st.tuples(seeds, st.floats(0.1, 0.9)),
}


def make(kind, drawn, frames):
    if kind == "video":
        seed, width, height, fps = drawn
        return read_video((clip(seed, frames, width, height), fps))
    return read_image(picture(*drawn)) if kind == "image" else read_sound(sound(*drawn))


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    """A family, its processor as it is loaded from a folder, and the tokens in whose place the model puts media."""
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = FAMILIES[request.param]()
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    family = family_of(model.config.model_type)
    processor = family.load_processor(pretrained_model_name_or_path=str(folder), local_files_only=True)
    family.settle(processor, model.config)
    return family, processor, in_place_of(model.config, family.takes)


def in_place_of(config, takes):
    """Return the tokens in whose place the model puts media (a video may have the picture's)."""
    names = [f"{kind}_token_{ending}" for kind in takes for ending in ("id", "index")]
    return {getattr(config, name, None) for name in names} - {None}


@few
@given(data=st.data())
def test_media_stand_where_the_model_puts_them_and_boxes_and_times_agree(loaded, data):
    family, processor, tokens = loaded
    counts = {kind: data.draw(st.integers(kind == family.takes[0], 2)) for kind in family.takes}
    drawn = {kind: [data.draw(DRAW[kind]) for _ in range(count)] for kind, count in counts.items()}
    frames = data.draw(st.integers(2, 5))  # as many in each video, and two: some models read them together
    media = Media(*(tuple(make(kind, one, frames) for one in drawn.get(kind, ())) for kind in MEDIA))
    row = family.encode(processor, "the red car", media)
    length = len(row.tokens)
    assert len(row.modality) == len(row.medium) == length and all(len(values) == length for values in row.stream.values())
    if tokens:
        assert [modality in MEDIA for modality in row.modality] == [token in tokens for token in row.tokens]
    kinds = [kind for kind in MEDIA for _ in range(counts.get(kind, 0))]
    assert len(row.grids) == len(row.media) == len(kinds)
    for number, (kind, place) in enumerate(zip(kinds, row.grids, strict=True)):
        own = [modality for modality, medium in zip(row.modality, row.medium, strict=True) if medium == number]
        assert own and set(own) == {kind}
        assert place is None or len(place) == len(own)
        if isinstance(place, Timeline):
            times_agree(place)
        elif place is not None:
            boxes_agree(place, row.media[number], data)


def boxes_agree(place, medium, data):
    size = place.size
    assert size == (medium if hasattr(medium, "size") else medium.frames[0]).size
    start, everything = 0, torch.ones(size[1], size[0], dtype=torch.bool)
    corners = data.draw(st.tuples(*[st.integers(0, side) for side in (*size, *size)]))
    box = (min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2]))
    inside = torch.zeros_like(everything)
    inside[box[1] : box[3], box[0] : box[2]] = True
    covered = place.overlap(inside)
    torch.testing.assert_close(covered, place.box_overlap(tuple(map(float, box))), rtol=0, atol=1e-9)
    assert covered.min() >= -1e-9 and covered.max() <= 1 + 1e-9 and covered.shape == (len(place),)
    whole = place.overlap(everything)
    for grid in place.grids:
        a_grid_is_whole(grid)
        for index in range(len(grid)):
            where = grid.box(index)
            assert place.box(start + index) == where
            if where is None:
                assert whole[start + index] == 0
                continue
            left, top, right, bottom = where
            middle = (left + right) / 2, (top + bottom) / 2
            assert grid.index(*middle) == index and start + index in place_indices(place, *middle)
            held = place.index(*middle)
            x0, y0, x1, y1 = place.box(held)
            assert x0 - 1e-6 <= middle[0] <= x1 + 1e-6 and y0 - 1e-6 <= middle[1] <= y1 + 1e-6
            if left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]:
                assert abs(whole[start + index] - 1) < 1e-9
        start += len(grid)
    assert start == len(place)


def place_indices(place, x, y):
    return place.indices(x, y) if isinstance(place, Tiles) else [place.index(x, y)]


def a_grid_is_whole(grid):
    """Boxes stand side by side in rows and columns; they fill the region, but for the gaps that a grid says it has."""
    assert isinstance(grid, Grid)
    boxes = [grid.box(index) for index in range(len(grid))]
    assert sum(box is None for box in boxes) == grid.rows * grid.newline
    if not grid.columns:
        return
    table = np.array([box for box in boxes if box is not None]).reshape(grid.rows, grid.columns, 4)
    assert (table[..., 2] > table[..., 0]).all() and (table[..., 3] > table[..., 1]).all()
    across, down = table[:, 1:, 0] - table[:, :-1, 2], table[1:, :, 1] - table[:-1, :, 3]
    largest = max(map(abs, grid.region))
    assert (across >= -1e-9 * largest).all() and (down >= -1e-9 * largest).all()
    assert grid.columns_at or (across <= 1e-9 * largest).all()
    assert grid.rows_at or (down <= 1e-9 * largest).all()
    ends = [table[..., 0].min(), table[..., 1].min(), table[..., 2].max(), table[..., 3].max()]
    np.testing.assert_allclose(ends, grid.region, atol=1e-9 * largest)


def times_agree(place):
    times = np.array([place.seconds(index) for index in range(len(place))])
    assert times[0, 0] == 0 and (times[1:, 0] == times[:-1, 1]).all() and (times[:, 1] > times[:, 0]).all()
    assert [place.index(float(begin + end) / 2) for begin, end in times] == list(range(len(place)))
    assert [place.index(float(begin)) for begin in times[:, 0]] == list(range(len(place)))
    end = float(times[-1, 1])
    assert place.index(end) is None and place.index(-1e-9) is None
    torch.testing.assert_close(place.overlap(0.0, end), torch.ones(len(place), dtype=torch.float64))
    part = place.overlap(0.3 * end, 0.7 * end)
    assert part.min() >= 0 and part.max() <= 1 + 1e-9 and float(part.sum() * place.step) == pytest.approx(0.4 * end)
