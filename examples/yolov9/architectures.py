# SPDX-License-Identifier: MIT
"""Layer tables of YOLOv9-t/s/m/c/e and GELAN-t/s/m/c/e.

A row is (from, block, args): `from` is a layer index or a list of them (-1: the layer
before), args are the constructor's without the input width. Widths and topology are
those of the YOLOv9 paper's released models.
"""

from dataclasses import dataclass
from pathlib import PurePath

Row = tuple[int | list[int], str, tuple]
CSP = "RepNCSPELAN4"


@dataclass(frozen=True)
class Widths:
    """Widths of one size; stages, p3, p4 and p5 are arguments of ELAN blocks."""

    stem: int
    stages: tuple[tuple, tuple, tuple, tuple]  # strides 4, 8, 16, 32
    down: str  # "AConv" or "ADown"
    downs: tuple[int, int, int]  # output width of the three downsamplings
    spp: tuple[int, int]
    p4: tuple
    p3: tuple
    back: tuple[int, int]  # downsampling widths of the bottom-up path
    p5: tuple


def _tiny(c: int) -> Widths:
    """Sizes t (c = 16) and s (c = 32): ELAN1 first, CSP blocks three deep."""
    p3, p4, p5 = ((k * c, k * c, k * c // 2, 3) for k in (4, 6, 8))
    return Widths(
        stem=c,
        stages=((2 * c, 2 * c, c), p3, p4, p5),
        down="AConv",
        downs=(4 * c, 6 * c, 8 * c),
        spp=(8 * c, 4 * c),
        p4=p4,
        p3=p3,
        back=(3 * c, 4 * c),
        p5=p5,
    )


SIZES = {
    "t": _tiny(16),
    "s": _tiny(32),
    "m": Widths(
        stem=32,
        stages=(
            (128, 128, 64, 1),
            (240, 240, 120, 1),
            (360, 360, 180, 1),
            (480, 480, 240, 1),
        ),
        down="AConv",
        downs=(240, 360, 480),
        spp=(480, 240),
        p4=(360, 360, 180, 1),
        p3=(240, 240, 120, 1),
        back=(184, 240),  # 180 rounded up to a multiple of 8, as released
        p5=(480, 480, 240, 1),
    ),
    "c": Widths(
        stem=64,
        stages=(
            (256, 128, 64, 1),
            (512, 256, 128, 1),
            (512, 512, 256, 1),
            (512, 512, 256, 1),
        ),
        down="ADown",
        downs=(256, 512, 512),
        spp=(512, 256),
        p4=(512, 512, 256, 1),
        p3=(256, 256, 128, 1),
        back=(256, 512),
        p5=(512, 512, 256, 1),
    ),
    "e": Widths(
        stem=64,
        stages=(
            (256, 128, 64, 2),
            (512, 256, 128, 2),
            (1024, 512, 256, 2),
            (1024, 512, 256, 2),
        ),
        down="ADown",
        downs=(256, 512, 1024),
        spp=(512, 256),
        p4=(512, 512, 256, 2),
        p3=(256, 256, 128, 2),
        back=(256, 512),
        p5=(512, 1024, 512, 2),
    ),
}


def _elan(args: tuple) -> Row:
    return (-1, "ELAN1" if len(args) == 3 else CSP, args)


def _backbone(w: Widths) -> list[Row]:
    """Nine layers; the stages are layers 2, 4, 6 and 8."""
    rows: list[Row] = [(-1, "Conv", (w.stem, 3, 2)), (-1, "Conv", (2 * w.stem, 3, 2))]
    rows.append(_elan(w.stages[0]))
    for width, stage in zip(w.downs, w.stages[1:], strict=True):
        rows += [(-1, w.down, (width,)), _elan(stage)]
    return rows


def _top_down(w: Widths, source: int, p4: int, p3: int) -> list[Row]:
    """Seven layers from the stride-32 layer `source`, joined by layers p4 and p3."""
    return [
        (source, "SPPELAN", w.spp),
        (-1, "Upsample", ()),
        ([-1, p4], "Concat", (1,)),
        _elan(w.p4),
        (-1, "Upsample", ()),
        ([-1, p3], "Concat", (1,)),
        _elan(w.p3),
    ]


def _bottom_up(w: Widths, p4: int, p5: int) -> list[Row]:
    """Six layers down to stride 32, joined by the top-down layers p4 and p5."""
    return [
        (-1, w.down, (w.back[0],)),
        ([-1, p4], "Concat", (1,)),
        _elan(w.p4),
        (-1, w.down, (w.back[1],)),
        ([-1, p5], "Concat", (1,)),
        _elan(w.p5),
    ]


def _gelan(w: Widths) -> list[Row]:
    """The single-branch network without its head: layers 0 to 21."""
    return _backbone(w) + _top_down(w, 8, 6, 4) + _bottom_up(w, 12, 9)


def _shifted(rows: list[Row], by: int) -> list[Row]:
    """The same rows with every absolute layer index moved by `by`."""

    def move(f: int) -> int:
        return f if f < 0 else f + by

    return [
        ([move(i) for i in f] if isinstance(f, list) else move(f), block, args)
        for f, block, args in rows
    ]


def _reversible_branch(w: Widths) -> list[Row]:
    """Layers 23 to 37 of yolov9-m and -c: the auxiliary backbone fed by CBLinear."""
    c3, c4, c5 = w.downs
    rows: list[Row] = [
        (5, "CBLinear", ((c3,),)),
        (7, "CBLinear", ((c3, c4),)),
        (9, "CBLinear", ((c3, c4, c5),)),
        (0, "Conv", (w.stem, 3, 2)),
        (-1, "Conv", (2 * w.stem, 3, 2)),
        _elan(w.stages[0]),
    ]
    for level in range(3):
        sources = [*range(23 + level, 26), -1]
        rows += [
            (-1, w.down, (w.downs[level],)),
            (sources, "CBFuse", ((level,) * (3 - level),)),
            _elan(w.stages[level + 1]),
        ]
    return rows


def _composite_backbone(w: Widths) -> list[Row]:
    """Layers 0 to 28 of the e models: two backbones tied by CBLinear and CBFuse."""
    rows: list[Row] = [(-1, "Silence", ()), *_backbone(w)]
    widths = (64, 128, 256, 512, 1024)
    for count, source in enumerate((1, 3, 5, 7, 9), start=1):
        rows.append((source, "CBLinear", (widths[:count],)))

    def fuse(level: int) -> Row:
        return ([*range(10 + level, 15), -1], "CBFuse", ((level,) * (5 - level),))

    rows += [(0, "Conv", (w.stem, 3, 2)), fuse(0)]
    rows += [(-1, "Conv", (2 * w.stem, 3, 2)), fuse(1), _elan(w.stages[0])]
    for level in range(3):
        rows += [
            (-1, w.down, (w.downs[level],)),
            fuse(level + 2),
            _elan(w.stages[level + 1]),
        ]
    return rows


def model_names() -> list[str]:
    return [f"{family}-{size}" for family in ("yolov9", "gelan") for size in SIZES]


def layer_table(name: str) -> list[Row]:
    """Rows of a model by name ("yolov9-s", "gelan-c", ...), the head last.

    Raises ValueError for a name that is not known.
    """
    if name not in model_names():
        raise ValueError(f"unknown model {name!r}: one of {', '.join(model_names())}")
    family, _, size = name.partition("-")
    w, dual = SIZES[size], family == "yolov9"
    if size == "e":
        return _large(w, dual)
    if not dual:
        return [*_gelan(w), ([15, 18, 21], "DDetect", ())]
    if size in ("t", "s"):
        head = ([28, 25, 22, 15, 18, 21], "DualDDetect", ())
        return [*_gelan(w), *_top_down(w, 8, 6, 4), head]
    rows = [(-1, "Silence", ()), *_shifted(_gelan(w), 1), *_reversible_branch(w)]
    return [*rows, ([31, 34, 37, 16, 19, 22], "DualDDetect", ())]


def model_name(cfg: str) -> str:
    """Name of a model from --cfg: "yolov9-s", "yolov9-s.yaml" or a path to it.

    Raises ValueError for a name that is not known.
    """
    name = PurePath(cfg).name.removesuffix(".yaml").removesuffix(".yml")
    layer_table(name)
    return name


def _large(w: Widths, dual: bool) -> list[Row]:
    rows = _composite_backbone(w)
    if not dual:
        rows += _top_down(w, 28, 25, 22) + _bottom_up(w, 32, 29)
        return [*rows, ([35, 38, 41], "DDetect", ())]
    rows += _top_down(w, 9, 7, 5) + _top_down(w, 28, 25, 22) + _bottom_up(w, 39, 36)
    return [*rows, ([35, 32, 29, 42, 45, 48], "DualDDetect", ())]
