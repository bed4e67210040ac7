"""The weights of a mechanism, drawn: what the code computes, not a picture of the paper.

A mechanism is drawn as it starts: before transfer and training, Longformer's global projections equal to the
local ones. Its layer is the first of an encoder, its head the first of the layer.
"""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import torch
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text
from torch import Tensor
from torch.nn import functional as F

from bakeoff.attention import Attention, Layer, build
from bakeoff.attention.weights import weights
from bakeoff.errors import BakeoffError, missing, unknown
from bakeoff.spec import AttentionSpec

SCORES = ("equal", "gaussian")
MOST_TOKENS = 2048
LARGEST = 65_536  # number in an option; memory for far larger ones ends the process
HEAD_DIM = 32  # of all-MiniLM-L6, the embedded encoder
WIDEST = 96  # columns, so that a drawing stays about a screen high
SHADES = " ░▒▓█"
PAPER, INK, GLOBAL_INK = (246, 246, 246), (24, 78, 119), (200, 84, 16)  # red, green, blue


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What a mechanism does with some queries and keys, and what dense attention does with the same.

    Args:
        attention: the mechanism with its options.
        scores: `equal`, all q · k are the same, so that weights show the pattern alone; or `gaussian`.
        seed: of Gaussian queries and keys, random blocks and random features.
        weights_NN: row i is what token i takes of every token; rows sum to 1.
        dense_NN: dense attention's, for the same scores.
        global_N: True at tokens that attend as in dense attention and that all tokens attend to.
    """

    attention: AttentionSpec
    scores: str
    seed: int
    weights_NN: Tensor
    dense_NN: Tensor
    global_N: Tensor

    @property
    def panels(self) -> list[tuple[str, Tensor]]:
        """Titles and weights: the mechanism, and dense attention where it is another picture."""
        mine = [(str(self.attention), self.weights_NN)]
        is_other = self.scores == "gaussian" and self.attention.name != "dense"
        return [*mine, ("dense, same queries and keys", self.dense_NN)] if is_other else mine

    @property
    def caption(self) -> list[str]:
        """What is drawn, in a few lines."""
        N = len(self.weights_NN)
        seen = (self.weights_NN > 0).sum(1).double().mean()
        moved = (self.weights_NN - self.dense_NN).abs().sum(1).mean() / 2
        elsewhere = f"{100 * moved:.1f} % of its weight lies elsewhere than in dense attention"
        lines = [
            f"{N} tokens, {self.scores} scores, seed {self.seed}; a row is a query, darkest at its largest",
            f"a token sees {seen:.1f} tokens in the mean; {elsewhere}",
        ]
        if self.global_N.any() and not self.global_N.all():
            lines.append(f"global tokens (from and to all): {_ranges(self.global_N)}")
        return lines


def mechanism(attention: AttentionSpec, length: int, seed: int = 0) -> Attention:
    """A mechanism of one head, as it starts, for a layer whose input is [q, k, v] (hidden size 3 D)."""
    layer = Layer(0, 1, 1, HEAD_DIM, 3 * HEAD_DIM, length, seed)
    built = build(attention.name, layer, attention.options).double().eval()
    thirds = torch.eye(3 * HEAD_DIM).split(HEAD_DIM)
    # A mechanism has projections of its own for all three, or none.
    for third, projection in zip(thirds, built.projections(), strict=False):
        projection.load_state_dict({"weight": third, "bias": torch.zeros(HEAD_DIM)})
    return built


def draw(
    attention: AttentionSpec | str, length: int = 64, *, scores: str | None = None, seed: int = 0
) -> Drawing:
    """The weights of a mechanism for `length` tokens, and dense attention's for the same queries and keys.

    Args:
        attention: the mechanism, as in `longformer:window=8`.
        length: tokens (N), 2 to 2,048.
        scores: `equal` or `gaussian`; by default equal where that shows a pattern, else Gaussian.
        seed: of Gaussian queries and keys, random blocks and random features.
    """
    attention = AttentionSpec.parse(attention)
    if not 2 <= length <= MOST_TOKENS:
        raise BakeoffError(f"a drawing has 2 to {MOST_TOKENS:,} tokens, not {length:,}.")
    if scores is not None and scores not in SCORES:
        raise unknown("scores", scores, SCORES)
    if not 0 <= seed < 2**32:
        raise BakeoffError(f"a seed lies within 0 and {2**32 - 1:,}, not {seed}.")
    for name, value in attention.options.items():
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(item, int) and item > LARGEST for item in values):
            raise BakeoffError(f"a drawing takes numbers up to {LARGEST:,}, not {name}={value}.")
    drawn = mechanism(attention, length, seed)
    generator = torch.Generator().manual_seed(seed)
    q_ND, k_ND = (torch.randn(length, HEAD_DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    gaussian_NN = _weights(drawn, q_ND, k_ND)
    dense_NN = (q_ND @ k_ND.T * HEAD_DIM**-0.5).softmax(1)
    # Equal scores would hide that a row is approximated.
    global_N = torch.isclose(gaussian_NN, dense_NN).all(1) & (gaussian_NN > 0).all(0)
    if scores != "gaussian":
        equal_NN = _weights(drawn, torch.zeros_like(q_ND), torch.zeros_like(k_ND))
        if scores == "equal" or _shades(equal_NN).min() < 0.5:
            flat_NN = torch.full_like(equal_NN, 1 / length)
            return Drawing(attention, "equal", seed, equal_NN, flat_NN, global_N)
    return Drawing(attention, "gaussian", seed, gaussian_NN, dense_NN, global_N)


def _weights(drawn: Attention, q_ND: Tensor, k_ND: Tensor) -> Tensor:
    given: dict[str, Any] = {}
    if "hidden_BNE" in drawn.layer_inputs:
        given["hidden_BNE"] = torch.cat((q_ND, k_ND, torch.zeros_like(q_ND)), 1)[None]
    with torch.no_grad():
        return weights(drawn, q_ND[None, None], k_ND[None, None], scaling=HEAD_DIM**-0.5, **given)[0]


def render_terminal(drawing: Drawing, console: Console) -> None:
    """Print the drawing as wide as the console allows: in colour, or in shades where it is no terminal."""
    panels, gap = drawing.panels, 2
    columns = min(WIDEST, (console.width - gap * (len(panels) - 1)) // len(panels))
    N, is_plain = len(drawing.weights_NN), not console.is_terminal or console.no_color
    pooled, repeated = -(-N // max(1, columns)), max(1, columns // N)
    pictures = []
    for title, weights_NN in panels:
        shade = _shades(weights_NN).repeat_interleave(repeated, 0).repeat_interleave(repeated, 1)
        globals_N = drawing.global_N.repeat_interleave(repeated)
        lines = _plain(shade, pooled) if is_plain else _coloured(shade, globals_N, pooled)
        head = Text(title)
        head.truncate(lines[0].cell_len, overflow="ellipsis", pad=True)
        pictures.append([head, *lines])
    for parts in zip(*pictures, strict=True):
        console.print(Text(" " * gap).join(parts), soft_wrap=True)
    for line in drawing.caption:
        console.print(Text(line, style="dim"))


def write_png(drawing: Drawing, path: Path) -> None:
    """Draw into a PNG: 360 pixels a panel, 400 high. Needs matplotlib, the extra `draw`."""
    if path.suffix.lower() != ".png":
        raise BakeoffError(f"{path}: a drawing is written as .png.")
    if not path.absolute().parent.is_dir():
        raise BakeoffError(f"{path}: its folder does not exist.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing("--output needs matplotlib", "draw") from None
    panels = drawing.panels
    figure = Figure(figsize=(3.6 * len(panels), 4), dpi=100, layout="constrained")
    for number, (title, weights_NN) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.imshow(_colours(_shades(weights_NN), drawing.global_N).numpy(), interpolation="nearest")
        axes.set_title("\n".join(textwrap.wrap(title.replace(",", ", "), 44)), fontsize=8)
        axes.set_xlabel("key")
        axes.set_ylabel("query")
    try:
        FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})  # the same bytes again
    except OSError as error:
        raise BakeoffError(f"{path} cannot be written: {error.strerror}.") from None


def _shades(weights_NN: Tensor) -> Tensor:
    """From 0 to 1, the largest weight of each row."""
    return weights_NN / weights_NN.amax(1, keepdim=True)


def _colours(shade: Tensor, global_N: Tensor) -> Tensor:
    """(rows, columns, 3) bytes: ink on paper, another ink from and to global tokens."""
    if global_N.all():  # then it says nothing
        global_N = torch.zeros_like(global_N)
    is_global = (global_N[:, None] | global_N)[..., None]
    paper, ink, other = (torch.tensor(colour, dtype=torch.float64) for colour in (PAPER, INK, GLOBAL_INK))
    return torch.lerp(paper, torch.where(is_global, other, ink), shade[..., None]).round().byte()


def _plain(shade: Tensor, pooled: int) -> list[Text]:
    """A character for `pooled` columns and twice as many rows: the darkest of them."""
    darkest = F.max_pool2d(shade[None], (2 * pooled, pooled), ceil_mode=True)[0]
    levels = (darkest * (len(SHADES) - 1)).ceil().int().tolist()
    return [Text("".join(SHADES[level] for level in row)) for row in levels]


def _coloured(shade: Tensor, global_N: Tensor, pooled: int) -> list[Text]:
    """A half block for `pooled` columns and as many rows: the darkest of them."""
    darkest = F.max_pool2d(shade[None], pooled, ceil_mode=True)[0]
    is_global = F.max_pool1d(global_N.double()[None], pooled, ceil_mode=True)[0] > 0
    rows = [[Color.from_rgb(*rgb) for rgb in row] for row in _colours(darkest, is_global).tolist()]
    if len(rows) % 2:
        rows.append([Color.default()] * len(rows[0]))
    return [
        Text.assemble(*(("▀", Style(color=up, bgcolor=down)) for up, down in zip(upper, lower, strict=True)))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    ]


def _ranges(which_N: Tensor) -> str:
    """The numbers of True entries, from 0: "0 to 3, 60 to 63"."""
    numbers = which_N.nonzero()[:, 0].tolist()
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))
