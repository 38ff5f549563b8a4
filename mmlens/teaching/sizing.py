"""Exercises of 09_your_own_model, which any model leaves as they are: what patterns cost, and what an even share is."""

from mmlens.teaching.exercise import compared, exercise
from mmlens.teaching.reading import number


@exercise("09/two-pictures", number)
def two_pictures(given: float) -> str | None:
    """Patterns grow with the square of the prompt. How many GiB do all patterns of LLaVA-1.5 7B take, as in the table's
    first column, if the prompt holds two pictures (2 x 576 + 30 positions)? `memory` and `llava` say what one takes.
    """

    def patterns(positions: int, size: int = 2) -> float:
        return 32.0 * 32 * positions**2 * size  # bytes, of 32 layers with 32 heads

    one, two = patterns(576 + 30) / 2**30, patterns(2 * 576 + 30) / 2**30
    mistakes = {
        "that is one picture, as in the table": one,
        "that is twice one picture: it grows with the square of the positions": 2 * one,
        "that is four times one picture; the 30 words are there once, not twice": 4 * one,
        "that is in GB (1e9 bytes); a GiB has 2 ** 30": patterns(2 * 576 + 30) / 1e9,
        "that is in MiB": two * 1024,
        "that is in float32: `size` is 2 bytes in bfloat16": 2 * two,
        "that is without the 30 words": patterns(2 * 576) / 2**30,
    }
    return compared(
        given, two, mistakes, 'memory(weights=7.06e9, **{**llava, "positions": 2 * 576 + 30}), the row of patterns'
    )


@exercise("09/even-share", number)
def even_share(given: float) -> str | None:
    """LLaVA-1.5 keeps the middle square of a picture and lays 24 x 24 positions over it. What share of the attention that
    goes to a picture of 640 x 480 pixels would the box (240, 160, 320, 240) get, if it were even?
    """
    # The square is x 80 to 560, y 0 to 480, so a position is 20 x 20 pixels, and the box covers 4 x 4 of them.
    mistakes = {
        "that is of the whole picture: the model sees the middle square alone, 480 x 480 pixels": 80 * 80 / (640 * 480),
        "that is how many positions the box has: divide by all of the picture": 16.0,
        "that is of the whole prompt: the share of what goes to the picture": 16 / (576 + 30),
        "that is one position of the picture; the box covers more": 1 / 576,
        "in per cent; a share lies between 0 and 1": 100 * 16 / 576,
    }
    return compared(given, 16 / 576, mistakes, "a position is 480 / 24 pixels wide: how many of 576 does the box cover?")
