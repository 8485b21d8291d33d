"""Boxes and labels on a picture: readable at any image size, one steady colour per class."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfine_jax.data.picture.draw_masks import paint_masks
from dfine_jax.data.picture.object_masks import ObjectMasks
from dfine_jax.errors import UserError

Colour = tuple[int, int, int]
Rect = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

_GOLDEN_ANGLE = 137.50776405
_LIGHTNESS = (0.72, 0.60, 0.84)  # cycled, so that classes with neighbouring hues differ in lightness too
_SMALLEST_PICTURE_PX = 320  # longer side; labels on smaller pictures would cover them
_SMALLEST_FONT_PX = 9  # below this letters cannot be read
_CROWD = 15  # more boxes than this get smaller letters
_HIDDEN = 0.3  # a label covered by better ones to more than this share is left out; its frame still shows the class
_SYSTEM_FONTS = (  # tried in turn for names the built-in font, which is ASCII, cannot write
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc",
    "PingFang.ttc", "msyh.ttc", "malgun.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansArabic-Regular.ttf",
)  # fmt: skip


class Style(NamedTuple):
    """Measures that follow from the size of the picture, all in pixels."""

    line: int
    font: int
    pad: int


def style_for(width_px: int, height_px: int, num_boxes: int = 0) -> Style:
    """Line width, font size and label padding for a picture of this size.

    Letters grow more slowly than the picture: large pictures show more and are looked at more closely.
    """
    side = math.sqrt(width_px * height_px)
    line = max(1, round(0.013 * side**0.82))
    crowding = 1.0 if num_boxes <= _CROWD else 0.8
    font = max(_SMALLEST_FONT_PX, round(0.084 * side**0.81 * crowding))
    return Style(line=line, font=font, pad=max(1, round(font / 6)))


@lru_cache(maxsize=1024)
def class_colour(label: int) -> Colour:
    """sRGB colour of a class: hues by the golden angle in perceptual OKLCH space, so that the first few lie far apart.

    Chroma is reduced until the colour exists on a screen; hue and lightness are kept.
    """
    hue = math.radians((30.0 + label * _GOLDEN_ANGLE) % 360.0)
    lightness = _LIGHTNESS[(label // 8) % len(_LIGHTNESS)]
    chroma = 0.20
    while True:
        rgb = _oklab_to_linear_rgb(lightness, chroma * math.cos(hue), chroma * math.sin(hue))
        if all(-1e-4 <= c <= 1.0001 for c in rgb):
            red, green, blue = (_encode(c) for c in rgb)
            return red, green, blue
        chroma -= 0.005


def text_colour(background: Colour) -> Colour:
    """White on backgrounds up to a middle luminance (contrast at least 3:1 by WCAG), black on lighter ones."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.29 else (255, 255, 255)


def draw_boxes(
    image: Image.Image,
    boxes_xyxy_px: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    font_file: str | None = None,
    masks: ObjectMasks | None = None,
    enlarge: bool = False,
    track_ids: Sequence[int] | np.ndarray | None = None,
) -> Image.Image:
    """Copy of the picture with masks, boxes and labels; the best scored label lies on top.

    Args:
      image: any mode; the result is RGB and has the same size.
      boxes_xyxy_px: [n, 4] corners in pixels of ``image``; parts outside the picture are cut off.
      labels: [n] class indices, which choose the colours.
      names: [n] text of each label (the class name of each box).
      scores: [n] appended to the labels, or None for ground truth.
      font_file: TrueType font for names in scripts that the built-in Latin font lacks.
      masks: of the n objects; their boxes are drawn with a thinner line then.
      enlarge: pictures whose longer side is under 320 pixels become larger by a whole factor, so that labels can be
        read; all others keep their size.
      track_ids: [n] numbers of the objects in their video, before the scores; none below 0.
    """
    picture = image.convert("RGB")
    factor = math.ceil(_SMALLEST_PICTURE_PX / max(picture.size)) if enlarge else 1
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
        boxes_xyxy_px = boxes_xyxy_px * factor
    width, height = picture.size
    order = np.argsort(scores, kind="stable") if scores is not None else np.argsort(-_areas(boxes_xyxy_px))
    visible = [int(i) for i in order if _is_visible(boxes_xyxy_px[i], width, height)]
    style = style_for(width, height, len(visible))
    font = label_font(style.font, "".join(names), font_file)
    if masks is not None:
        pixels = np.array(picture)
        paint_masks(pixels, masks, [class_colour(int(label)) for label in labels], style.line, factor)
        picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    for i in visible:
        box, colour = _clip(boxes_xyxy_px[i], width, height), class_colour(int(labels[i]))
        if masks is None:
            _draw_frame(canvas, box, colour, style)
        else:
            canvas.rectangle([round(v) for v in box], outline=colour, width=max(1, style.line // 3))

    plates: list[tuple[Rect, str, Colour]] = []
    for i in reversed(visible):
        suffix = f" #{track_ids[i]}" if track_ids is not None and track_ids[i] >= 0 else ""
        suffix += "" if scores is None else f" {scores[i]:.2f}"
        text = _shorten(writable(font, names[i]), suffix, font, width - 2 * style.pad)
        box = _clip(boxes_xyxy_px[i], width, height)
        plate = _place(_plate_size(text, font, style), box, picture.size, [p for p, _, _ in plates])
        if plate is not None:
            plates.append((plate, text, class_colour(int(labels[i]))))
    for plate, text, colour in reversed(plates):
        canvas.rectangle(plate, fill=colour)
        corner = (plate[0] + style.pad, plate[1] + style.pad)
        canvas.text(corner, text, fill=text_colour(colour), font=font, anchor="la")
    return picture


def _draw_frame(canvas: ImageDraw.ImageDraw, box: Rect, colour: Colour, style: Style) -> None:
    halo = max(1, style.line // 3)  # a dark rim keeps the frame visible on a background of its own colour
    x0, y0, x1, y1 = (round(v) for v in box)
    inner = (x0 + style.line, y0 + style.line, x1 - style.line, y1 - style.line)
    if inner[2] - inner[0] > 2 * halo and inner[3] - inner[1] > 2 * halo:
        canvas.rectangle(inner, outline=(20, 20, 20), width=halo)
    canvas.rectangle((x0, y0, x1, y1), outline=colour, width=style.line)


def _plate_size(text: str, font: ImageFont.FreeTypeFont, style: Style) -> tuple[int, int]:
    ascent, descent = font.getmetrics()
    return math.ceil(font.getlength(text)) + 2 * style.pad, ascent + descent + 2 * style.pad


def _place(size: tuple[int, int], box: Rect, picture: tuple[int, int], placed: Sequence[Rect]) -> Rect | None:
    """The least covered place of a label around its box, in order of preference; None when it would be hidden."""
    w, h = size
    x0, y0, x1, y1 = box
    above, below, left, right = y0 - h, y1 + 1, x0, x1 - w + 1
    places = np.array(
        [(left, above), (right, above), (left, y0), (left, below), (right, below), (right, y0), (left, y1 - h)]
    )
    inside = np.clip(places, 0, np.maximum(np.subtract(picture, size), 0))
    rects = np.concatenate([inside, inside + (w - 1, h - 1)], axis=1)
    others = np.array(placed, float).reshape(-1, 4)
    shared = np.minimum(rects[:, None, 2:], others[:, 2:]) - np.maximum(rects[:, None, :2], others[:, :2])
    covered = np.maximum(shared, 0).prod(-1).sum(-1) / (w * h)
    moved = np.abs(inside - places).sum(1)  # a label pushed off its corner points at its box less clearly
    best = int(np.argmin((covered + 0.02 * moved / h).round(6)))
    if covered[best] > _HIDDEN:
        return None
    left, top, right, bottom = rects[best].tolist()
    return left, top, right, bottom


def _shorten(name: str, suffix: str, font: ImageFont.FreeTypeFont, room_px: float) -> str:
    candidates = [name] + [name[:keep].rstrip() + "…" for keep in range(len(name) - 1, 0, -1)]
    fitting = (text for text in candidates if font.getlength(text + suffix) <= room_px)
    return next(fitting, "…") + suffix


def check_font(file: str) -> None:
    """Whether labels can be written with a font, before work is done for them.

    Args:
      file: path, or the name of an installed font.

    Raises:
      UserError: missing, or no font.
    """
    if _load_font(file, _SMALLEST_FONT_PX) is None:
        problem = "cannot be read as a font" if os.path.exists(file) else "does not exist"
        raise UserError(f"font {file} {problem}; give a TrueType or OpenType file, such as DejaVuSans.ttf")


def label_font(size_px: int, text: str, font_file: str | None) -> ImageFont.FreeTypeFont:
    """The given font, else the built-in one when it has the characters, else the first system font that does."""
    characters = sorted(set(text))
    if font_file is not None:
        check_font(font_file)
    for file in (font_file,) if font_file else (None, *_SYSTEM_FONTS):
        font = _load_font(file, size_px)
        if font is not None and (font_file or not any(_lacks(font, c) for c in characters)):
            return font
    builtin = _load_font(None, size_px)
    assert builtin is not None
    return builtin


@lru_cache(maxsize=256)
def _load_font(file: str | None, size_px: int) -> ImageFont.FreeTypeFont | None:
    """A font file, or for None the built-in font; None when there is no such file or it is no font."""
    if file is not None:
        try:
            return ImageFont.truetype(file, size_px)
        except OSError:
            return None
    font = ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which labels need; install Pillow from PyPI")
    return font


@lru_cache(maxsize=8192)
def _lacks(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Whether the font would show the character as its empty box."""
    return not character.isspace() and _drawn(font, character) == _drawn(font, "\uffff")


@lru_cache(maxsize=1024)
def _drawn(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    side = 2 * int(font.size)
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text((0, 0), character, fill=255, font=font)
    return image.tobytes()


def writable(font: ImageFont.FreeTypeFont, text: str) -> str:
    """The text with characters the font lacks replaced by their base letters or, failing that, question marks."""
    folded = (unicodedata.normalize("NFKD", c)[0] if _lacks(font, c) else c for c in text)
    return "".join("?" if _lacks(font, c) else c for c in folded)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _is_visible(box: np.ndarray, width: int, height: int) -> bool:
    x0, y0, x1, y1 = box
    return bool(x1 > x0 and y1 > y0 and x1 > 0 and y1 > 0 and x0 < width and y0 < height)


def _clip(box: np.ndarray, width: int, height: int) -> Rect:
    x0, y0, x1, y1 = (float(v) for v in box)
    return max(x0, 0.0), max(y0, 0.0), min(x1, width - 1.0), min(y1, height - 1.0)


def _oklab_to_linear_rgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """Oklab to linear sRGB (B. Ottosson, https://bottosson.github.io/posts/oklab)."""
    l_ = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m_ = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s_ = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
        -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
        -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
    )


def _encode(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    value = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * value)
