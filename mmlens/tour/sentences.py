"""What the tour says about its figures: every number is read from a result."""

from jaxtyping import Bool
from torch import Tensor

from mmlens.analysis import AblationCurve, Decoding, LogitLens, Patching, ReceptiveField
from mmlens.grid import Grid, Tiles
from mmlens.inputs import Inputs
from mmlens.organisms import pictoworld
from mmlens.plot.canvas import shape as shape_of
from mmlens.tour.case import Case
from mmlens.tour.page import Section
from mmlens.tour.switching import Rate, SwitchedOff

SILENT = "The model answers nothing: it ends its turn at once, so there is no word to trace."
ALIKE = 0.05  # logits: below this, shares of a difference are shares of noise


def positions(inputs: Inputs, case: Case) -> str:
    """Return how the stream divides into image and text."""
    grid = inputs.grids[0][0]
    image, rest = int(inputs.mask("image").sum()), int((inputs.mask("all") & ~inputs.mask("image")).sum())
    placed = grid if isinstance(grid, (Grid, Tiles)) else None
    shape = "" if placed is None else f" ({shape_of(placed)})"
    seen = ""
    if placed is not None and (part := _part(placed.region, placed.size)) < 0.995:
        seen = f" The model sees {part:.0%} of the picture: its image processor cuts the rest off."
    return f"{image} of the {image + rest} positions hold image{shape}, {rest} hold text.{seen}"


def clearest_layer(result: LogitLens, where: Bool[Tensor, "batch pos"]) -> int:
    """Return the layer in which the word is among the top five at most of the `where` positions."""
    return int((result.target_ranks[..., 0][:, where.cpu()] < 5).float().mean(-1).argmax())


def lens(result: LogitLens, inputs: Inputs, on_object: Bool[Tensor, "batch pos"] | None, word: str) -> str:
    """Return where in depth and place the word can be read at image positions."""
    image = inputs.mask("image").cpu()
    mean = result.mean_entropy(image)
    unsure = f"Their mean entropy goes from {mean[0]:.2f} nats in the first layer to {mean[-1]:.2f} at the output."
    if not word:
        return unsure
    ranks, prob = result.target_ranks[..., 0], result.target_log_probs[..., 0].exp()
    if on_object is None:
        hits = (ranks[:, image] < 5).sum(-1)
        layer = clearest_layer(result, image)
        where = f"{hits[layer]} of {int(image.sum())} image positions in layer {layer}"
        if not hits[layer]:
            where = "no image position of any layer"
        return f'"{word}" is among the top five words at {where}. {unsure}'
    inside, outside = on_object.cpu(), image & ~on_object.cpu()
    layer = clearest_layer(result, inside)
    counts = [int((ranks[layer, where] < 5).sum()) for where in (inside, outside)]
    means = [float(prob[layer, where].mean()) if bool(where.any()) else 0.0 for where in (inside, outside)]
    return (
        f'In layer {layer}, "{word}" is among the top five words at {counts[0]} of the object\'s {int(inside.sum())} image '
        f"positions and at {counts[1]} of the {int(outside.sum())} others (mean probability {means[0]:.3f} and "
        f"{means[1]:.3f}). {unsure}"
    )


def neurons(
    decoding: Decoding,
    field: ReceptiveField,
    control: ReceptiveField,
    mask: Bool[Tensor, "height width"] | None,
    word: str,
) -> str:
    """Return which neuron scores highest and how the first ones overlap with the object, beside random ones."""
    first, score = decoding.neurons.labels()[0], decoding.neurons.score
    strongest = (
        f"{first} scores highest for " + f'"{word}"' + (f" ({float(score[0]):.2g} logits)" if score is not None else "")
    )
    writes = f"; it writes {', '.join(w.strip() for w in decoding.words[0][:3])}."
    if mask is None:
        return strongest + writes
    ours, random = field.iou(mask), control.iou(mask)
    return (
        f"{strongest}{writes} The {len(ours)} highest-scoring neurons fire on the object with a mean IoU of "
        f"{float(ours.mean()):.2f} ({len(random)} random neurons of the same layers: {float(random.mean()):.2f}; the most "
        f"that a mask of this size can have: {field.bound(mask):.2f})."
    )


def ablation(result: AblationCurve, word: str) -> str:
    """Return how the word's probability falls, beside the random draws."""
    own, random = result.log_prob.exp().mean(-1), result.random_log_prob.exp().mean(-1)
    return (
        f'Without the {result.ks[-1]} highest-scoring neurons the probability of "{word}" goes from {own[0]:.2f} to '
        f"{own[-1]:.2f}; without {result.ks[-1]} random ones it is {random[:, -1].mean():.2f} "
        f"(from {random[:, -1].min():.2f} to {random[:, -1].max():.2f} over {len(random)} draws)."
    )


def ablation_table(result: AblationCurve) -> list[list[str]]:
    """Return the curve as a table: number off, ours, mean and range of the random draws."""
    own, random = result.log_prob.exp().mean(-1), result.random_log_prob.exp().mean(-1)
    rows = [
        [str(k), f"{own[i]:.3f}", f"{random[:, i].mean():.3f}", f"{random[:, i].min():.3f} to {random[:, i].max():.3f}"]
        for i, k in enumerate(result.ks)
    ]
    return [["neurons off", "P, these", "P, random (mean)", "P, random (range)"], *rows]


def differs(result: Patching) -> bool:
    """Return whether the two runs differ by enough for shares of the difference to mean something."""
    return abs(float(result.clean_metric[0]) - float(result.corrupted_metric[0])) >= ALIKE


def patching(result: Patching, case: Case, word: str, instead: str, *, same: bool) -> str:
    """Return how much each site restores at most, or that there is nothing to restore."""
    clean, corrupted = (round(float(number[0]), 2) + 0.0 for number in (result.clean_metric, result.corrupted_metric))
    if same:
        opening = (
            f'For {case.other_name} the model would go on with "{word}" as well; its log-probability is {clean:.2f} for the '
            f"first picture and {corrupted:.2f} for the other."
        )
    else:
        opening = (
            f'For {case.other_name} the model would go on with "{instead}"; the logit of "{word}" minus that of '
            f'"{instead}" is {clean:.1f} for the first picture and {corrupted:.1f} for the other.'
        )
    if not differs(result):
        return f"{opening} That is hardly a difference, so there is nothing to restore."
    best = result.effect[..., 0]
    parts = [
        f"{site} {float(best[:, i].max()):.0%} (before layer {int(best[:, i].argmax())})"
        for i, site in enumerate(result.sites)
    ]
    return f"{opening} Of this difference the first picture's stream restores at most: {', '.join(parts)}."


def switched(result: SwitchedOff, frequency: Rate | None, word: str) -> Section:
    """Return the section on what the model writes without more and more neurons."""
    rows = [[str(int(k)), new or "(nothing)"] for k, new in zip(result.tried, result.answers, strict=True)]
    drawn = sorted(set(result.random_answers), key=result.random_answers.index)
    random = ", ".join(f'"{a or "(nothing)"}" ({result.random_answers.count(a)})' for a in drawn)
    return Section(
        "What does the model write without them?",
        f'{result.sentence()} The neurons are those with the highest scores for "{word}", off at the image positions '
        f"only.{_still(result, word)} Answers without as many random neurons of the same layers: {random}."
        + (f" {frequency.sentence()}" if frequency is not None else "")
        + _same_shape(result),
        table=[["neurons off", "answer"], ["0", result.answer], *rows],
    )


def _still(result: SwitchedOff, word: str) -> str:
    """Return whether the word is still in the new answer, where there is a new one."""
    if result.number is None:
        return ""
    held = word.lower() in result.answers[-1].lower().split()
    return f' "{word}" is {"still" if held else "no longer"} a word of the answer.'


def _same_shape(result: SwitchedOff) -> str:
    """Return a remark where the old and the new answer are two kinds of image's names for one shape of Pictoworld."""
    old, new = (answer.split()[-1:] for answer in (result.answer, result.answers[-1]))
    for shape, nouns in pictoworld.RENAMED.items():
        kinds = {noun: kind for kind, noun in nouns.items()}
        if result.number is not None and old and new and {*old, *new} <= set(kinds):
            return (
                f' Both words name the same shape, a {shape}: "{old[0]}" in a {kinds[old[0]]}, "{new[0]}" in a '
                f"{kinds[new[0]]}. The new answer still names the shape, as another kind of image would."
            )
    return ""


def beside(case: Case, result: SwitchedOff | None, frequency: Rate | None) -> str:
    """Return what stands beside the main sentence: how often it is true, or why nobody can say."""
    if result is None:
        return "A question that asks for a word, or a prompt in the model's own chat format, may help."
    if frequency is not None:
        return frequency.sentence()
    if case.scene is None:
        return "One picture has no rate: whether this holds for others takes other pictures with the same question."
    return "No rate: only the Pictoworld models know the names of the other scenes' objects."


def _part(region: tuple[float, float, float, float], size: tuple[int, int]) -> float:
    """Return the fraction of the picture that the tower sees."""
    left, top, right, bottom = region
    across, down = min(right, size[0]) - max(left, 0), min(bottom, size[1]) - max(top, 0)
    return across * down / (size[0] * size[1])
