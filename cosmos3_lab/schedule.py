"""How noisy each step is, and the algebra that ties a noisy sample to its clean one.

Symbols, used everywhere: `sigma` in [0, 1] is the noise level; `sample = (1 - sigma) * x0 + sigma * noise`; the network
predicts `velocity = noise - x0`, so `x0 = sample - sigma * velocity`; `timestep` is the integer `int(1000 * sigma)` shown
to the network (truncated, not rounded). A schedule of n steps has n + 1 sigmas, the last one 0.

`shift(s, x) = s * x / (1 + (s - 1) * x)` bends a straight line of sigmas towards noise: with s = 10 half of the steps are
spent above sigma = 0.9, where the large forms are decided.

Read next: `unipc.py` (the solver that walks down the sigmas). Source of the variants: NVIDIA's framework ("native-flow"),
PhyAI ("phyai-flow", which shifts the top sigma twice), diffusers ("diffusers-flow"); Karras et al. 2022,
arXiv:2206.00364, eq. 5 ("karras").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from cosmos3_lab.configs import read_fields, real_number, whole_number
from cosmos3_lab.showing import Shown
from cosmos3_lab.untrusted import CheckpointError

FlowVariant = Literal["native-flow", "phyai-flow", "diffusers-flow"]
ScheduleName = Literal["native-flow", "phyai-flow", "diffusers-flow", "karras", "auto"]
FLOW_VARIANTS: tuple[FlowVariant, ...] = ("native-flow", "phyai-flow", "diffusers-flow")

NUM_TRAIN_TIMESTEPS = 1000  # scheduler_config.json: num_train_timesteps
SIGMA_MAX = 1 - 1 / NUM_TRAIN_TIMESTEPS  # the noisiest sigma seen in training
MAX_STEPS = 1000

# Settings of scheduler_config.json that decide what the numbers mean; any other value would be another sampler.
SUPPORTED_SCHEDULER: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "solver_type": "bh2",
    "solver_order": 2,
    "predict_x0": True,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "disable_corrector": [],
    "thresholding": False,
    "shift_terminal": None,
    "solver_p": None,
    "rescale_betas_zero_snr": False,
}


@dataclass(frozen=True, eq=False)
class Schedule(Shown):
    """Sigmas and timesteps of one run.

    Attributes:
        sigmas: `[n + 1]` float32, falling from below 1 to exactly 0.
        timesteps: `[n]` int64, what the network is told at each step.
        name: which rule made it.
        flow_shift: the shift used, None where there is none.
    """

    sigmas: Float32[Tensor, " n_plus_1"]
    timesteps: Int64[Tensor, " n"]
    name: str = "custom"
    flow_shift: float | None = None

    def __post_init__(self) -> None:
        if self.sigmas.ndim != 1 or self.timesteps.ndim != 1 or len(self.timesteps) == 0 or len(self.sigmas) == 0:
            shapes = list(self.sigmas.shape), list(self.timesteps.shape)
            raise ValueError(f"got sigmas and timesteps of shapes {shapes}, expected [n + 1] and [n] with n of at least 1")
        falling = bool((self.sigmas[1:] < self.sigmas[:-1]).all())
        if len(self.sigmas) != len(self.timesteps) + 1 or not falling or self.sigmas[-1] != 0 or self.sigmas[0] >= 1:
            ends = f"{float(self.sigmas[0]):g} to {float(self.sigmas[-1]):g}"
            raise ValueError(
                f"got {len(self.sigmas)} sigmas from {ends} and {len(self.timesteps)} timesteps, expected n + 1 sigmas that fall "
                "from below 1 to exactly 0, no two alike in float32; a smaller flow shift or fewer steps keep them apart"
            )
        if self.flow_shift is not None:  # NumPy's numbers become Python's
            object.__setattr__(self, "flow_shift", real_number("flow_shift", self.flow_shift))

    @property
    def num_steps(self) -> int:
        """n, the number of solver steps."""
        return len(self.timesteps)

    def __repr__(self) -> str:
        shift = "" if self.flow_shift is None else f", flow_shift={self.flow_shift:g}"
        ends = f"sigma {float(self.sigmas[0]):.5f} ... {float(self.sigmas[-2]):.5f}, 0"
        return f"Schedule({self.name}, {self.num_steps} steps, {ends}{shift})"


def flow_schedule(n: int, *, flow_shift: float = 10.0, variant: FlowVariant = "native-flow") -> Schedule:
    """A straight line of sigmas, bent by the flow shift.

    Args:
        n: number of steps, 1 to 1000.
        flow_shift: s of the shift, 1e-6 to 1e12; 1 leaves the line straight.
        variant: whose line: see the module's docstring.

    Raises:
        ValueError: an argument is out of range.
    """
    n = check_steps(n)
    wanted = "a finite number above 0, from 1e-6 to 1e12 and usually from 1 to 10"
    if not 1e-6 <= (flow_shift := real_number("flow_shift", flow_shift, wanted)) <= 1e12:
        raise ValueError(f"got flow_shift {flow_shift}, expected {wanted}")
    if variant == "native-flow":
        line = np.linspace(SIGMA_MAX, 0, n + 1)[:-1]
    elif variant == "phyai-flow":
        line = np.linspace(_shift(flow_shift, SIGMA_MAX), 0, n + 1)[:-1]
    elif variant == "diffusers-flow":
        line = np.linspace(1, 1 / NUM_TRAIN_TIMESTEPS, n + 1)[:-1]
    else:
        raise ValueError(f"got variant {variant!r}, expected one of {', '.join(FLOW_VARIANTS)}")
    return _schedule(_shift(flow_shift, line), variant, flow_shift)


def karras_schedule(n: int, *, sigma_min: float = 0.147, sigma_max: float = 200.0, rho: float = 7.0) -> Schedule:
    """Karras et al.'s spacing, moved from their unbounded noise level e to ours by `sigma = e / (e + 1)`.

    Args:
        n: number of steps, 1 to 1000.
        sigma_min, sigma_max: in Karras' units (noise over signal), above 0 and rising.
        rho: curvature, 0.5 to 100; 7 in the paper.

    Raises:
        ValueError: an argument is out of range.
    """
    n = check_steps(n)
    sigma_min, sigma_max = real_number("sigma_min", sigma_min), real_number("sigma_max", sigma_max)
    if not 0 < sigma_min < sigma_max <= 1e12:
        raise ValueError(f"got sigma_min {sigma_min} and sigma_max {sigma_max}, expected 0 < sigma_min < sigma_max <= 1e12")
    if not 0.5 <= (rho := real_number("rho", rho)) <= 100:
        raise ValueError(f"got rho {rho}, expected a number from 0.5 to 100; Karras et al. take 7")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    edm = (high + np.linspace(0, 1, n) * (low - high)) ** rho
    return _schedule(edm / (edm + 1), "karras", None)


def schedule_from_sigmas(sigmas: Sequence[float] | Float[Tensor, " n"]) -> Schedule:
    """A schedule of your own noise levels.

    Args:
        sigmas: falling from at most 1, one for each step; the 0 at the end is added where it is missing. The timesteps are
            `int(1000 * sigma)`, where a float32's rounding is forgiven.

    Raises:
        ValueError: there are none, too many, or they do not fall from at most 1 to at least 0.
    """
    levels = np.asarray(sigmas, np.float64)
    if levels.ndim != 1 or not ((levels >= 0) & (levels <= 1)).all() or not (np.diff(levels) < 0).all():
        raise ValueError(f"got sigmas {levels.tolist()}, expected numbers that fall, from at most 1 to at least 0")
    levels = levels[levels > 0]
    check_steps(len(levels))
    timesteps = np.floor(np.round(levels * NUM_TRAIN_TIMESTEPS, 4))  # 977.99997 was 978 before it became a float32
    return replace(_schedule(levels, "custom", None), timesteps=torch.from_numpy(timesteps.astype(np.int64)).clamp(max=999))


def schedule_from_config(config: Mapping[str, Any], n: int, *, flow_shift: float | None = None) -> Schedule:
    """The schedule that a checkpoint's `scheduler/scheduler_config.json` describes, as diffusers would build it.

    Args:
        config: the parsed file.
        n: number of steps, 1 to 1000.
        flow_shift: replaces the file's; an error where the file asks for Karras sigmas, which have no shift.

    Raises:
        CheckpointError: the file describes a scheduler that Cosmos3 does not use.
        ValueError: `flow_shift` has no effect, or n is out of range.
    """
    for key, value in SUPPORTED_SCHEDULER.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"scheduler_config.json has {key} = {config[key]!r}, but only {value!r} is supported")
    file = _SchedulerFile(**read_fields(_SchedulerFile, config, file="scheduler_config.json"))
    if file.use_karras_sigmas:
        if flow_shift is not None:
            raise ValueError(
                f"got flow_shift {flow_shift:g}, but the checkpoint's scheduler file asks for Karras sigmas, which have no "
                "shift; leave flow_shift out or choose a flow schedule (use_karras_sigmas=False)"
            )
        if file.sigma_min is None or file.sigma_max is None:
            raise CheckpointError("scheduler_config.json asks for Karras sigmas, expected numbers for sigma_min and sigma_max")
        return karras_schedule(n, sigma_min=file.sigma_min, sigma_max=file.sigma_max)
    return flow_schedule(n, flow_shift=file.flow_shift if flow_shift is None else flow_shift, variant="diffusers-flow")


@dataclass(frozen=True)
class _SchedulerFile:
    """The keys of scheduler_config.json that are obeyed, with diffusers' defaults."""

    use_karras_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    flow_shift: float = 1.0


def velocity_to_x0(sample: Float[Tensor, "..."], velocity: Float[Tensor, "..."], sigma: Tensor) -> Float[Tensor, "..."]:
    """`x0 = sample - sigma * velocity`, the clean sample that this velocity points at.

    Args:
        sample, velocity: of one shape.
        sigma: 0-dim; rounded to the sample's dtype first, which matters only for a bfloat16 solver state (0.99990 -> 1.0).
    """
    return sample - sigma.to(sample.dtype) * velocity


def add_noise(x0: Float[Tensor, "..."], noise: Float[Tensor, "..."], sigma: float | Tensor) -> Float[Tensor, "..."]:
    """`sample = (1 - sigma) * x0 + sigma * noise`, the straight path that flow matching learns."""
    return (1 - sigma) * x0 + sigma * noise


def half_log_snr(sigma: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """UniPC's clock `lambda = log(1 - sigma) - log(sigma)`; infinite at sigma = 0."""
    return torch.log(1 - sigma) - torch.log(sigma)


def log_snr(sigma: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Log of the signal-to-noise power ratio, `2 * half_log_snr(sigma)`."""
    return 2 * half_log_snr(sigma)


def _shift(s: float, x: Any) -> Any:  # noqa: ANN401  (a float or an array of them)
    return s * x / (1 + (s - 1) * x)


def _schedule(sigmas: np.ndarray, name: str, flow_shift: float | None) -> Schedule:
    """Truncate to timesteps in float64, then round the sigmas to float32: the order matters for parity."""
    below_one = np.minimum(sigmas, 1 - 1e-6)  # sigma = 1 would make log(1 - sigma) infinite
    timesteps = torch.from_numpy((below_one * NUM_TRAIN_TIMESTEPS).astype(np.int64))
    return Schedule(torch.from_numpy(np.append(below_one, 0.0).astype(np.float32)), timesteps, name, flow_shift)


def check_steps(n: int) -> int:
    """Refuse a number of steps that no schedule has.

    Raises:
        ValueError: not a whole number from 1 to 1000.
    """
    return whole_number("steps", n, 1, MAX_STEPS)
