"""Make the README's pictures from screenshots of the browser tests, with few colours so that they stay small."""

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
# Each screenshot, its picture, and the height kept in pixels: the training panel is longer than a README's screen.
PICTURES = {"panel-03-light-1280": ("training-panel", 560), "panel-04-light-1280": ("playground", 500)}


def main():
    for screenshot, (name, height) in PICTURES.items():
        picture = Image.open(ROOT / "build" / "browser" / f"{screenshot}.png").convert("RGB")
        picture = picture.crop((0, 0, picture.width, min(height, picture.height)))
        picture.quantize(64).save(ROOT / "notebooks" / "images" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
