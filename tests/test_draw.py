"""Drawings: the weights are the mechanism's own, and both pictures show them."""

import importlib.util
import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.text import Text

from bakeoff import draw
from bakeoff.attention import ATTENTIONS
from bakeoff.attention.reference import REFERENCES
from bakeoff.errors import BakeoffError
from bakeoff.spec import AttentionSpec

ROOT = Path(__file__).parent.parent
SPECS = [
    "dense",
    "longformer:window=8,global_tokens=2",
    "longformer:window=4,global_tokens=3,separate_global=false",
    "bigbird:block_size=4,num_random_blocks=1",
    "performer:num_features=16,global_tokens=3",
    "performer:num_features=16,feature_map=random,global_tokens=0",
    "linformer:projected_length=8,global_tokens=3",
]


def by_reference(attention, q_ND, k_ND):
    """The weights by the n x n formula, which is given the identity a head's width at a time."""
    N, D = q_ND.shape
    given = (
        {"hidden_BNE": torch.zeros(1, N, 3 * D).double()} if attention.paper.endswith("2006.04768") else {}
    )
    keep = torch.ones(1, N, dtype=torch.bool)
    columns = [
        REFERENCES[type(attention).__name__.lower()](
            attention, q_ND[None, None], k_ND[None, None], v_ND[None, None], keep, D**-0.5, **given
        )
        for v_ND in torch.nn.functional.pad(torch.eye(N).double(), (0, -N % D)).split(D, 1)
    ]
    return torch.cat(columns, -1)[0, 0, :, :N]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("N", [31, 64, 65])
def test_weights_are_those_of_the_reference_and_sum_to_one(spec, N):
    attention = draw.mechanism(AttentionSpec.parse(spec), N, seed=3)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(N, draw.HEAD_DIM, generator=generator).double() for _ in range(2))
    weights = draw._weights(attention, q, k)
    torch.testing.assert_close(weights, by_reference(attention, q, k), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(weights.sum(1), torch.ones(N).double(), rtol=1e-9, atol=0)


def test_every_mechanism_is_drawn():
    assert {spec.partition(":")[0] for spec in SPECS} == ATTENTIONS.keys()


def test_equal_scores_where_they_show_a_pattern_and_who_is_global():
    place = torch.arange(64)
    drawing = draw.draw("longformer:window=8,global_tokens=2")
    assert drawing.scores == "equal"
    near = (place[:, None] - place).abs() <= 4
    assert torch.equal(drawing.weights_NN > 0, near | (place < 2) | (place < 2)[:, None])
    assert torch.equal(drawing.global_N, place < 2)
    assert "global tokens (from and to all): 0 to 1" in drawing.caption
    drawing = draw.draw("linformer:projected_length=6,global_tokens=4")
    assert drawing.scores == "gaussian"  # equal ones would give every token 1 / 64
    assert torch.equal(drawing.global_N, place < 4)
    segments = drawing.weights_NN[4:, 4:].unflatten(1, (6, 10))
    torch.testing.assert_close(segments, segments[..., :1].expand_as(segments))
    assert not draw.draw("performer:num_features=16,global_tokens=0").global_N.any()
    ends = draw.draw("bigbird:block_size=4,num_random_blocks=1").caption[-1]
    assert ends.endswith(": 0 to 3, 60 to 63")


def test_the_seed_draws_other_blocks_and_the_same_ones_again():
    spec = "bigbird:block_size=4,num_random_blocks=1"
    one, again, other = (draw.draw(spec, seed=seed).weights_NN for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def printed(drawing, width, is_terminal):
    file = io.StringIO()
    color = {"color_system": "truecolor", "no_color": False} if is_terminal else {}
    draw.render_terminal(drawing, Console(file=file, width=width, force_terminal=is_terminal, **color))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("spec", SPECS)
def test_the_terminal_shows_it_in_its_width(spec, width):
    drawing = draw.draw(spec)
    for is_terminal in (True, False):
        text = printed(drawing, width, is_terminal)
        assert ("\x1b[" in text) == is_terminal
        lines = Text.from_ansi(text).plain.splitlines()
        assert max(len(line) for line in lines) <= width
        assert ("▀" in text) == is_terminal
    # At 80 columns a character of the plain picture is a column of 64 tokens, and two of their rows.
    if width == 80 and drawing.scores == "equal":
        seen = (drawing.weights_NN > 0).view(32, 2, 64).any(1)
        assert lines[1:33] == ["".join(" █"[cell] for cell in row) for row in seen.tolist()]


def test_a_few_tokens_fill_the_width_and_global_ones_have_their_colour():
    text = printed(draw.draw("longformer:window=2", 10), 40, True)
    assert len(Text.from_ansi(text).plain.splitlines()[1]) == 40
    for red, green, blue in (draw.INK, draw.GLOBAL_INK, draw.PAPER):
        assert f"38;2;{red};{green};{blue}" in text


@pytest.mark.parametrize(("spec", "panels"), [(SPECS[1], 1), (SPECS[6], 2)])
def test_the_png_opens_and_shows_it(call, tmp_path, spec, panels):
    from matplotlib.image import imread

    path = tmp_path / "drawing.png"
    assert call("draw", spec, "--output", path) == (0, f"{path}\n", "")
    pixels = imread(path)
    assert pixels.shape[:2] == (400, 360 * panels)
    shown = {tuple(pixel) for pixel in (pixels[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()}
    assert {draw.INK, draw.GLOBAL_INK} <= shown
    before = path.read_bytes()
    call("draw", spec, "--output", path)
    assert path.read_bytes() == before


def test_bad_input_is_one_line(call, monkeypatch, tmp_path):
    (tmp_path / "folder.png").mkdir()
    for arguments, said in [
        (["dense", "--output", tmp_path / "folder.png"], "cannot be written"),
        (["bigbrd"], "Did you mean 'bigbird'"),
        (["longformer:window=7"], "even number"),
        (["dense", "--length", "1"], "2 to 2,048 tokens, not 1"),
        (["dense", "--length", "4096"], "not 4,096"),
        (["dense", "--seed", "-1"], "0 and 4,294,967,295, not -1"),
        (["dense", "--seed", "99999999999999999999"], "not 99999999999999999999"),
        (["dense", "--seed", "9223372036854775808"], "not 9223372036854775808"),
        (["dense", "--seed", "-9223372036854775808"], "not -9223372036854775808"),
        (["linformer:projected_length=65537"], "up to 65,536, not projected_length=65537"),
        (["linformer:projected_length=[65537]"], "up to 65,536, not projected_length=(65537,)"),
        (["dense", "--scores", "flat"], "Known: equal, gaussian"),
        (["dense", "--output", tmp_path / "a.jpg"], "written as .png"),
        (["dense", "--output", tmp_path / "no" / "a.png"], "folder does not exist"),
    ]:
        code, stdout, stderr = call("draw", *arguments)
        assert (code, stdout, len(stderr.splitlines())) == (2, "", 1)
        assert said in stderr
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BakeoffError, match=r"pip install '\.\[draw\]'"):
        draw.write_png(draw.draw("dense", 4), tmp_path / "a.png")


def test_the_pages_pictures_are_small_and_made_by_their_commands():
    spec = importlib.util.spec_from_file_location("drawings", ROOT / "docs" / "drawings.py")
    drawings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawings)
    made = {picture for _, picture in drawings.commands()}
    assert made == {path.relative_to(ROOT) for path in (ROOT / "docs" / "attention").glob("*.png")}
    for picture in made:
        assert (ROOT / picture).stat().st_size < 60_000
        assert f"]({picture.name})" in (ROOT / picture).with_suffix(".md").read_text()
