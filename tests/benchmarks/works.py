"""The table: which work, ours, beside what, and the goals."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What ours is beside: `side` ("module.function" in `sides`), in words with its settings, and what is to be reached.

    `time` and `memory` are goals for ours / theirs; `missed`, why not, where one is. `share`: the part of our work that the
    peer does, by which its time is divided. `same`: both come to the same numbers, which is checked (`within` so much of the
    largest, in float32). `needs`: a package, in the peers' environment.
    """

    side: str
    what: str
    time: float | None = None
    memory: float | None = None
    share: float = 1.0
    same: bool = True
    needs: str | None = None
    missed: str = ""
    within: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Work:
    """A row of the table, or several. `images` for each prompt; `rows` prompts, or samples of a round."""

    name: str
    ours: str
    call: str
    peers: tuple[Peer, ...]
    images: int = 1
    rows: int = 1
    vocabulary: int | None = None
    sizes: tuple[str, ...] = ("toy", "25m", "250m", "7b")
    grows: tuple[str, ...] = ("positions", "layers", "samples")


WORKS = (
    Work(
        name="plain forward",
        ours="forward.ours",
        call="model(inputs)",
        peers=(Peer(side="forward.plain", what="transformers, SDPA", time=1.02),),
    ),
    Work(
        name="cache every `mlp.hook_post`",
        ours="caching.ours",
        call="run_with_cache",
        peers=(
            Peer(side="caching.bare", what="transformers, SDPA, bare torch hooks", time=1.05),
            Peer(side="caching.bridge", what="TransformerLens' bridge, SDPA", time=1.0),
            Peer(side="caching.nnsight", what="nnsight, one trace, SDPA", time=1.02, needs="nnsight"),
        ),
    ),
    Work(
        name="last-token attention, all layers, 2,880 image positions",
        ours="attention.ours",
        call="attention_rows",
        images=5,
        sizes=("toy", "25m", "7b"),
        peers=(Peer(side="attention.eager", what="transformers, eager, `output_attentions`", time=0.4, memory=0.15),),
    ),
    Work(
        name="gradient x activation, all neurons at image positions",
        ours="scores.gradient",
        call="grad_x_activation",
        peers=(
            Peer(side="scores.floor", what="1 forward + 1 backward, bare hooks", time=1.15),
            Peer(side="scores.captum", what="Captum, all layers at once", time=1.0, needs="captum"),
            Peer(side="scores.nnsight", what="nnsight, one trace", time=1.0, needs="nnsight"),
        ),
    ),
    Work(
        name="contribution of all neurons for one noun",
        ours="scores.contribution",
        call="logit_contribution",
        peers=(
            Peer(
                side="scores.gradient",
                what="`grad_x_activation`",
                time=0.4,
                same=False,
                missed="it is one forward, already without the unembedding of other positions, and the peer two",
            ),
            Peer(
                side="scores.table",
                what="the paper's whole `W_out W_U`",
                time=0.02,
                same=False,
                missed="a forward is needed for each prompt; the table, made once, grows with vocabulary and width",
            ),
            Peer(side="forward.plain", what="1 forward of transformers", same=False),
        ),
    ),
    Work(
        name="DAPE statistics, 80 samples",
        ours="sweeping.dape",
        call="sweep(TokenStats)",
        rows=16,
        sizes=("toy", "25m", "7b"),
        peers=(Peer(side="sweeping.nothing", what="the same forwards, nothing attached", time=1.08, same=False),),
    ),
    Work(
        name="MINER's five scores, 80 samples",
        ours="sweeping.miner",
        call="sweep(SampleStats)",
        rows=16,
        sizes=("toy", "25m", "7b"),
        peers=(Peer(side="sweeping.nothing", what="the same forwards, nothing attached", time=1.30, same=False),),
    ),
    Work(
        name="MINER's five scores without the causal mask, 80 samples",
        ours="sweeping.unmasked",
        call="sweep(SampleStats)",
        rows=16,
        sizes=("toy", "25m", "7b"),
        grows=(),
        peers=(
            # scores of a layer are scaled by their range, and with them rounding
            Peer(side="sweeping.plainly", what="the paper's procedure, eager, T x T x N products", time=0.65, within=5e-3),
        ),
    ),
    Work(
        name="logit lens, all layers and positions, top 10 and entropy, 32,000 tokens",
        ours="lens.ours",
        call="logit_lens",
        vocabulary=32_000,
        sizes=("toy", "25m", "7b"),
        peers=(
            Peer(side="lens.dense", what="one dense tensor (layer x pos x vocab)", time=0.8, memory=0.1),
            Peer(side="lens.nnsight", what="nnsight, layer by layer, one trace", time=1.0, needs="nnsight"),
            Peer(side="lens.nnterp", what="nnterp's own lens", time=1.0, needs="nnterp"),
        ),
    ),
    Work(
        name="activation patching, stream, all layers x 16 positions",
        ours="patching.ours",
        call="activation_patching",
        sizes=("toy", "25m", "7b"),
        peers=(
            Peer(
                side="patching.through_bind",
                what="`transformer_lens.patching`, images bound",
                time=0.2,
                share=1 / 4,
                missed="82 % of it are matrix products behind the patches, which a patch does change",
            ),
            Peer(side="patching.transformer_lens", what="... on TransformerLens' own bridge", time=0.2, share=1 / 4),
            Peer(side="patching.hook_loop", what="a plain loop over hooks", time=0.25, share=1 / 4),
        ),
    ),
    Work(
        name="edge attribution, heads + MLPs",
        ours="circuits.ours",
        call="circuit",
        peers=(Peer(side="circuits.floor", what="2 forwards + 1 backward", time=1.5),),
    ),
    Work(
        name="generate 64 tokens with 2 % of neurons ablated",
        ours="generating.ours",
        call="generate(..., fwd_hooks)",
        peers=(Peer(side="generating.plain", what="transformers `generate`, nothing attached", time=1.10),),
    ),
    Work(
        name="load from disk to first logits",
        ours="forward.from_disk",
        call="from_pretrained",
        grows=("positions", "layers"),
        peers=(
            Peer(
                side="forward.from_disk_plain",
                what="transformers",
                time=1.15,
                missed="TransformerLens' bridge takes a tenth of a second to build, whatever the size",
            ),
        ),
    ),
)
