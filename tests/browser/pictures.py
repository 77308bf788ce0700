"""Make the README's pictures from screenshots of the browser tests, with few colours so that they stay small."""

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
PICTURES = {"panel-03-light-1280": "training-panel", "panel-04-light-1280": "playground"}


def main():
    for screenshot, name in PICTURES.items():
        picture = Image.open(ROOT / "build" / "browser" / f"{screenshot}.png").convert("RGB")
        picture.quantize(64).save(ROOT / "notebooks" / "images" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
