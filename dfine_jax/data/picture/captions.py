"""Words above and below pictures, on strips of their own: they cover nothing."""

from __future__ import annotations

from PIL import Image, ImageDraw

from dfine_jax.data.picture.draw import label_font, writable

_INK = (40, 48, 60)


def strip_height_px(font_px: int) -> int:
    """Height of a strip with letters of a size."""
    return round(font_px * 1.6)


def strip(width_px: int, text: str, font_px: int) -> Image.Image:
    """Text in the middle of a white strip; what is too long loses its beginning: names of files differ at the end."""
    font = label_font(font_px, text, None)
    shown, room_px = writable(font, text), width_px - font_px
    if font.getlength(shown) > room_px:
        ends = ("…" + shown[start:].lstrip() for start in range(1, len(shown)))
        shown = next((end for end in ends if font.getlength(end) <= room_px), "")
    made = Image.new("RGB", (width_px, strip_height_px(font_px)), "white")
    ImageDraw.Draw(made).text((width_px / 2, made.height / 2), shown, fill=_INK, font=font, anchor="mm")
    return made
