"""What the notebooks share: a size that is quick on any checkpoint.

Read next: `notebooks/00_quickstart.ipynb`.
"""

from cosmos3_lab.checkpoint import Cosmos3Models

QUICK = {"num_frames": 25, "height": 192, "width": 320}  # on a real checkpoint: seconds rather than minutes on one GPU
FEW_PIXELS = 2_000_000  # of a clip; up to here the full size is quick enough


def starting_size(models: Cosmos3Models) -> dict[str, int | float]:
    """Size of the clips that a notebook starts with, and in print what the full size is.

    Args:
        models: from `load_cosmos3`.

    Returns:
        `num_frames`, `height`, `width`, `fps`: the checkpoint's own defaults where they are small, 25 frames of 192x320 else.
    """
    size, words = describe_starting_size(models)
    print(words)
    return size


def describe_starting_size(models: Cosmos3Models) -> tuple[dict[str, int | float], str]:
    """The size that a notebook starts with, and the full size in words.

    Args:
        models: from `load_cosmos3`.
    """
    d = models.defaults
    full = {"num_frames": d.num_frames, "height": d.height, "width": d.width}
    pixels = d.num_frames * d.height * d.width
    if pixels <= FEW_PIXELS:
        words = f"{d.name}: {d.num_frames} frames of {d.height}x{d.width} at {d.fps:g} fps, its full size"
        return full | {"fps": d.fps}, words
    times = pixels / (QUICK["num_frames"] * QUICK["height"] * QUICK["width"])
    quick = f"{QUICK['num_frames']} frames of {QUICK['height']}x{QUICK['width']}"
    words = (
        f"{d.name}: starting with {quick}; the full size, {d.num_frames} frames of {d.height}x{d.width}, has {times:.0f} times "
        "as many pixels, and attention costs more than that"
    )
    return QUICK | {"fps": d.fps}, words
