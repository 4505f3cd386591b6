"""Contact sheets: many small images in one."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 8
_LABEL_HEIGHT = 32
_PAPER, _INK = (238, 238, 238), (20, 20, 20)


def contact_sheet(
    images: Sequence[Image.Image], labels: Sequence[str], *, columns: int = 8, zoom: int = 2
) -> Image.Image:
    """Return the images in a grid, each enlarged `zoom` times without smoothing, with a label of two lines."""
    font = ImageFont.load_default(size=11)
    width, height = max(i.width for i in images) * zoom, max(i.height for i in images) * zoom
    across, down = width + _GAP, height + _LABEL_HEIGHT + _GAP
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * across + _GAP, rows * down + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = _GAP + place % columns * across, _GAP + place // columns * down
        larger = image.convert("RGB").resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
        sheet.paste(larger, (x, y))
        pen.multiline_text((x, y + height + 2), label, fill=_INK, font=font, spacing=1)
    return sheet
