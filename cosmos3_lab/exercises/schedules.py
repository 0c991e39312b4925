"""The exercises of notebook 03: the shift, from log-SNR back to sigma, a schedule of your own.

Read next: `towers.py`, the exercises of notebook 04.
"""

import torch

from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.schedule import NUM_TRAIN_TIMESTEPS, Schedule, log_snr

STEPS = 6
ENDS = (0.999, 0.1)  # first and last sigma above 0


@exercise("03.1", hint="The formula stands above the figure of the shift: s times x, over 1 + (s - 1) times x.")
def shift(answer: object) -> None:
    """Both ends stay, and all between moves towards noise."""
    for s in (1.0, 5.0, 10.0):
        ends = [float(call(answer, s, x)) for x in (0.0, 1.0)]
        expect(abs(ends[0]) + abs(ends[1] - 1) < 1e-6, f"with s = {s:g} the ends 0 and 1 became {ends}, expected them to stay.")
    same = float(call(answer, 1.0, 0.3))
    expect(abs(same - 0.3) < 1e-6, f"s = 1 moved 0.3 to {same:g}, expected it to stay.")
    middle = float(call(answer, 10.0, 0.5))
    expect(middle > 0.5, f"s = 10 moved 0.5 to {middle:g}, expected more noise, not less (which of s and 1/s is it?).")
    expect(abs(middle - 10 / 11) < 1e-6, f"s = 10 moved 0.5 to {middle:g}, expected 10/11.")
    twice = float(call(answer, 2.0, float(call(answer, 5.0, 0.2))))
    expect(abs(twice - float(call(answer, 10.0, 0.2))) < 1e-6, f"5 and then 2 moved 0.2 to {twice:g}, expected what 10 does.")


@exercise("03.2", hint="Solve 2 * log((1 - sigma) / sigma) = value for sigma; torch.sigmoid is 1 / (1 + exp(-x)).")
def sigma_of(answer: object) -> None:
    """A noise level for every log-SNR; as much signal as noise is sigma = 1/2."""
    values = torch.tensor([-6.0, -1.0, 0.0, 1.0, 6.0], dtype=torch.float64)
    found = torch.as_tensor(call(answer, values))
    expect(found.shape == values.shape, f"got shape {list(found.shape)} for {len(values)} values, expected one sigma for each.")
    inside = bool(((found > 0) & (found < 1)).all())
    expect(inside, f"got {[round(float(s), 3) for s in found]}, expected noise levels between 0 and 1.")
    middle = float(found[2])
    expect(abs(middle - 0.5) < 1e-6, f"log-SNR 0 (as much signal as noise) gave {middle:g}, expected 0.5.")
    expect(bool((found[1:] < found[:-1]).all()), "more signal should mean a lower sigma; here it rises.")
    back = log_snr(found)
    message = f"log_snr of the sigma for log-SNR 1 is {float(back[3]):g}, expected 1 (it is a ratio of powers)."
    expect(torch.allclose(back, values), message)


@exercise("03.3", hint="torch.linspace from log_snr(0.999) to log_snr(0.1), back to sigma as in 03.2, then a 0 at the end.")
def even_in_log_snr(answer: object) -> None:
    """Equal steps on UniPC's clock; hand it to generate(..., schedule=...) and see what it does to a clip."""
    expect(isinstance(answer, Schedule), f"got {type(answer).__name__}, expected a Schedule(sigmas, timesteps).")
    n = answer.num_steps
    expect(n == STEPS, f"got {n} steps, expected {STEPS} (and one more sigma, the 0 at the end).")
    sigmas = answer.sigmas.double()
    for name, index, expected in (("first", 0, ENDS[0]), ("last sigma above 0", -2, ENDS[1])):
        found = float(sigmas[index])
        expect(abs(found - expected) < 1e-4, f"the {name} is {found:.4f}, expected {expected}.")
    gaps = log_snr(sigmas[:-1]).diff()
    even = float(gaps.max() - gaps.min()) < 0.02
    shown = [round(float(g), 2) for g in gaps]
    expect(even, f"log-SNR goes up by {shown}, expected the same each time.")
    thousandths = answer.sigmas[:-1].double() * NUM_TRAIN_TIMESTEPS
    low, high = ((thousandths + hair).long() for hair in (-0.01, 0.01))  # 999.0 in float32 may lie a hair below
    told = answer.timesteps
    truncated = bool(((low <= told) & (told <= high)).all())
    expect(truncated, f"the timesteps are {told.tolist()}, expected int(1000 * sigma), {high.tolist()}.")
