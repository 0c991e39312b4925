"""How weights move: Muon for matrices, AdamW for the rest, in float32 beside a model that may compute in bfloat16.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the averaged gradient of a matrix by the nearest
orthogonal matrix, so that every direction moves equally far; a small transformer learns faster with it. PyTorch has it too,
one matrix at a time; here all matrices of one shape go through together, because a small model is limited by the number of
kernels.

Read next: `train.py`.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from cosmos3_lab.pico.recipe import Phase

CLIP = 1.0  # largest norm of the gradient of all weights together


def learning_rate(step: int, phase: Phase) -> float:
    """Share of the full rate at a step: a short rise, a plateau, a straight line down to 0."""
    fall = (phase.steps - step) / (phase.steps * (1 - phase.flat))
    return max(0.0, min((step + 1) / phase.warmup, 1.0, fall))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized.

    Args:
        params: matrices.
        lr: size of a step; each matrix moves by `lr * max(1, rows / columns) ** 0.5` in every direction.
        momentum: of the average.
        weight_decay: share of `lr` by which weights shrink.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                averages = [self.state[p].setdefault("average", torch.zeros_like(p)) for p in params]
                grads = [p.grad for p in params]
                torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, averages, group["momentum"])  # Nesterov
                moves = orthogonalize(torch.stack(ahead)).to(params[0].dtype).unbind()
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, moves, alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** 0.5)


def orthogonalize(matrices: Float[Tensor, "n rows columns"], steps: int = 5) -> Float[Tensor, "n rows columns"]:
    """Push all singular values towards 1 with a quintic Newton-Schulz iteration; returns bfloat16 on a GPU.

    Args:
        matrices: any scale.
        steps: of the iteration; after 5 the singular values lie between about 0.7 and 1.2, but for those that were tiny.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # chosen by Jordan for a steep slope at 0
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


class Trainer:
    """A module, the float32 weights behind it, their averages, and the optimizers.

    Args:
        module: to train, on its device; from here on it computes in `dtype`.
        phase: gives rate, schedule and average.
        dtype: bfloat16 halves the memory traffic on a GPU; the weights themselves stay float32.
        float32: names of parameters that stay float32 in the module too.
        betas: of AdamW.
        weight_decay: of AdamW.
        muon: names of the matrices that Muon moves.
        rate_share: of the learning rates; less than 1 for a module that is trained further.
    """

    def __init__(
        self,
        module: nn.Module,
        phase: Phase,
        *,
        dtype: torch.dtype = torch.float32,
        float32: tuple[str, ...] = (),
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-4,
        muon: tuple[str, ...] = (),
        rate_share: float = 1.0,
    ) -> None:
        module.requires_grad_(True).train()
        self.module, self.phase, self.step_index = module, phase, 0
        self.params = dict(module.named_parameters())
        self.master = {name: p.detach().float().clone() for name, p in self.params.items()}
        self.average = {name: p.clone() for name, p in self.master.items()}
        for name, p in self.params.items():
            p.data = p.data.to(torch.float32 if name.startswith(float32) and float32 else dtype)
        rest = [p for name, p in self.master.items() if name not in muon]
        fused = {"fused": True} if rest[0].is_cuda else {"foreach": True}
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=phase.rate, betas=betas, weight_decay=weight_decay, **fused)
        ]
        if muon:
            self.optimizers.append(Muon([self.master[name] for name in muon]))
        self.full_rates = [rate_share * o.param_groups[0]["lr"] for o in self.optimizers]

    @property
    def progress(self) -> float:
        """Share of the steps that are done."""
        return self.step_index / self.phase.steps

    def collect(self, share: float = 1.0) -> None:
        """Take the gradients over from the module, for a step that needs several.

        Args:
            share: that they have in the step's gradient.
        """
        for name, p in self.params.items():
            if p.grad is not None:  # UND's last output goes nowhere, say
                grad, master = p.grad.float() if share == 1 else share * p.grad.float(), self.master[name]
                master.grad = grad if master.grad is None else master.grad + grad
        self.module.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Use the gradients of the module, and those collected before, clear them, and give the module the new weights."""
        self.collect()
        _average_over_processes([p.grad for p in self.master.values() if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.master.values(), CLIP, foreach=True)
        share = learning_rate(self.step_index, self.phase)
        for optimizer, rate in zip(self.optimizers, self.full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
        torch._foreach_copy_([p.data for p in self.params.values()], list(self.master.values()))
        # A young average forgets its random beginning faster.
        decay = min(self.phase.ema, (1 + self.step_index) / (10 + self.step_index))
        torch._foreach_lerp_(list(self.average.values()), list(self.master.values()), 1 - decay)
        for p in self.master.values():
            p.grad = None
        self.step_index += 1

    def state(self) -> dict[str, Tensor]:
        """Everything that a later session needs to go on, as named tensors."""
        state = {"step_index": torch.tensor(self.step_index), "steps": torch.tensor(self.phase.steps)}
        state |= {f"master.{name}": p for name, p in self.master.items()}
        state |= {f"average.{name}": p for name, p in self.average.items()}
        for i, optimizer in enumerate(self.optimizers):
            for name, p in self.master.items():
                state |= {f"optimizer{i}.{name}.{key}": value for key, value in optimizer.state.get(p, {}).items()}
        return {name: tensor.contiguous() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state()`.

        Args:
            state: of a trainer of the same module.
        """
        self.step_index = int(state["step_index"])
        self.phase = replace(self.phase, steps=int(state["steps"]))  # which may have been fitted to a time
        for name in self.master:
            self.master[name].copy_(state[f"master.{name}"])
            self.average[name].copy_(state[f"average.{name}"])
        for i, optimizer in enumerate(self.optimizers):
            for p_name, p in self.master.items():
                start = f"optimizer{i}.{p_name}."
                keys = [key for key in state if key.startswith(start)]
                if keys:
                    optimizer.state[p] = {key.removeprefix(start): _laid_out_as(p, state[key]) for key in keys}
        torch._foreach_copy_([p.data for p in self.params.values()], list(self.master.values()))

    @torch.no_grad()
    def averaged(self) -> nn.Module:
        """A copy of the module with its averaged weights, in float32."""
        module = copy.deepcopy(self.module).requires_grad_(False).eval()
        for name, p in module.named_parameters():
            p.data = self.average[name].clone()
        return module


def _laid_out_as(p: Tensor, saved: Tensor) -> Tensor:
    """A copy in the memory layout of `p`, which fused AdamW relies on (its step counter has another shape)."""
    return torch.empty_like(p).copy_(saved) if saved.shape == p.shape else saved.clone()


def _average_over_processes(grads: list[Tensor]) -> None:
    """Several GPUs: each has its share of the batch (`torchrun`); all end up with the same gradient."""
    if dist.is_initialized():
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat, op=dist.ReduceOp.AVG)
        torch._foreach_copy_(
            grads, [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in grads]), grads, strict=True)]
        )
