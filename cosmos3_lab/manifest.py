"""What a run was, as plain JSON: what was asked, what took effect, on which machine, and hashes of what came of it.

    texts       prompts and token ids        not in the manifest of a private run
    machine     versions and names           not in the manifest of a private run
    requested, effective   settings as they were asked for and as they took effect
    request, solver   all that is needed to do the same again with the same ids

Numbers are written so that reading them gives the same bits: JSON's decimals are those of float64, and sigmas are float32.

Read next: `bundle.py`, which keeps the manifest in the run's folder.
"""

import hashlib
import importlib.metadata
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos3_lab.captions import resolve_negative_prompt
from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseInputs
from cosmos3_lab.fusing import kernels_of
from cosmos3_lab.guidance_scale import Guidance, guidance_settings
from cosmos3_lab.latents import Latents
from cosmos3_lab.presets import Preset
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.settings import PICO
from cosmos3_lab.sizes import latent_to_pixel_shape

# Choices of a preset that were made when the request was, in case it is then run with another preset.
PROMPT_CHOICES = (
    "system_prompt",
    "system_prompt_image",
    "metadata",
    "negative_metadata",
    "negative_default",
    "sound_rounding",
)
# Of a request, besides its tokens and its noise.
REQUEST_FIELDS = (
    "video_shape",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "sound_frames",
    "sound_dim",
    "sound_latent_fps",
)
LIBRARIES = ("torch", "numpy", "av", "safetensors", "transformers", "tokenizers")


def prompt_manifest(
    models: Cosmos3Models, inputs: DenoiseInputs, prompt: str, negative_prompt: str | None
) -> dict[str, str | None]:
    """The texts of a run; the negative prompt is None where guidance needed none.

    Args:
        models, inputs: of the run.
        prompt, negative_prompt: as given to `generate`.
    """
    texts = {"prompt": prompt, "negative_prompt": None, "negative_prompt_source": None}
    if inputs.uncond is not None:
        negative = resolve_negative_prompt(negative_prompt, inputs.preset.negative_default, models.folder)
        texts |= {"negative_prompt": negative.text, "negative_prompt_source": negative.source}
    return texts


def run_manifest(models: Cosmos3Models, inputs: DenoiseInputs) -> dict[str, Any]:
    """The effective settings of a run as plain values, without its texts.

    Args:
        models, inputs: of the run.
    """
    request, media = inputs.request, models.media
    shape = latent_to_pixel_shape(request.video_shape, temporal=media.temporal, spatial=media.spatial)
    frames, height, width = shape
    return {
        "checkpoint": models.defaults.name,
        "fingerprint": models.fingerprint,
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": request.fps,
        "sound_frames": request.sound_frames,
        "text_tokens": request.text_ids.shape[1],
        "negative_text_tokens": request.neg_text_ids.shape[1] if inputs.uncond is not None else None,
        "num_inference_steps": inputs.schedule.num_steps,
        **guidance_settings(inputs.guidance),
        "schedule": inputs.schedule.name,
        "flow_shift": inputs.schedule.flow_shift,
        "preset": inputs.preset.name,
        "choices": asdict(inputs.preset) | {name: getattr(request.preset or inputs.preset, name) for name in PROMPT_CHOICES},
        "seed": request.seed if request.noise is None else None,
        "dtype": str(models.transformer.dtype).removeprefix("torch."),
        "device": str(models.device),
        "placement": models.placement,
        "quantized": models.quantized,
    }


def machine_manifest(models: Cosmos3Models) -> dict[str, Any]:
    """Versions, and names of device and checkpoint folder.

    Args:
        models: of the run.
    """
    device = models.device
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    versions = {"cosmos3_lab": package_version(), "python": platform.python_version()}
    versions |= {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {
        "versions": versions,
        "system": platform.system(),
        "device_name": name,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "kernels": kernels_of(device),
        "threads": torch.get_num_threads(),
        "checkpoint_folder": "pico" if models.folder == PICO else str(models.folder.absolute()),
    }


def package_version() -> str:
    """Of cosmos3_lab."""
    return import_module("cosmos3_lab").__version__


def inputs_manifest(inputs: DenoiseInputs) -> dict[str, Any]:
    """What `read_inputs` needs to make the same request, schedule and recipe again, besides token ids and noise.

    Args:
        inputs: of the run.
    """
    request, schedule = inputs.request, inputs.schedule
    solver = {
        "name": schedule.name,
        "flow_shift": schedule.flow_shift,
        "sigmas": schedule.sigmas.tolist(),
        "timesteps": schedule.timesteps.tolist(),
        "preset": asdict(inputs.preset),
        "prompt_preset": None if request.preset is None else asdict(request.preset),
    }
    settings = {name: getattr(request, name) for name in REQUEST_FIELDS}
    return {"request": {name: plain(asdict(v) if is_dataclass(v) else v) for name, v in settings.items()}, "solver": solver}


def ids_manifest(request: Cosmos3T2VRequest) -> dict[str, Any]:
    """Token ids of both prompts; masks where they hide something.

    Args:
        request: of the run.
    """

    def mask(values: Tensor) -> list[int] | None:
        return None if bool(values.all()) else values[0].tolist()

    return {
        "ids": request.text_ids[0].tolist(),
        "mask": mask(request.text_mask),
        "negative_ids": request.neg_text_ids[0].tolist(),
        "negative_mask": mask(request.neg_text_mask),
    }


def read_inputs(manifest: Mapping[str, Any], noise: Latents | None) -> tuple[Cosmos3T2VRequest, Schedule, Preset]:
    """The request, schedule and recipe of a manifest, for `prepare_denoise`.

    Args:
        manifest: with what `inputs_manifest` and `ids_manifest` ("texts") wrote.
        noise: that was given in place of the seed's.

    Raises:
        ValueError: something is missing, or cannot be.
    """
    try:
        solver, settings, ids = dict(manifest["solver"]), dict(manifest["request"]), manifest["texts"]
        preset, asked = Preset(**solver["preset"]), solver.get("prompt_preset")  # which old manifests do not have
        sigmas, timesteps = torch.tensor(solver["sigmas"], dtype=torch.float32), torch.tensor(solver["timesteps"])
        schedule = Schedule(sigmas, timesteps.long(), solver["name"], solver["flow_shift"])
        settings = {name: _tuples(value) for name, value in settings.items()}
        if isinstance(settings["guidance_scale"], dict):
            settings["guidance_scale"] = Guidance(**settings["guidance_scale"])
        tokens = {
            "text_ids": _row(ids["ids"]),
            "text_mask": _row(ids["mask"] or [1] * len(ids["ids"])),
            "neg_text_ids": _row(ids["negative_ids"]),
            "neg_text_mask": _row(ids["negative_mask"] or [1] * len(ids["negative_ids"])),
        }
        recipe = None if asked is None else Preset(**asked)
        return Cosmos3T2VRequest(**tokens, **settings, noise=noise, preset=recipe), schedule, preset
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the manifest does not describe a run ({error!r})") from error


def plain(value: object) -> Any:  # noqa: ANN401  (whatever JSON holds)
    """A value as JSON can hold it: tuples become lists; tensors and records, which are kept elsewhere, their short text.

    Args:
        value: of a setting.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)


def sha256_of(values: Tensor | np.ndarray) -> str:
    """Hash of a tensor's dtype, shape and bytes.

    Args:
        values: `[...]`, on any device.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values.detach().cpu()
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def latents_hashes(latents: Latents) -> dict[str, str]:
    """Of video and, where there is sound, of sound.

    Args:
        latents: to name.
    """
    named = {"video": latents.video, "sound": latents.sound}
    return {name: sha256_of(values) for name, values in named.items() if values is not None}


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most bytes so far: of the GPU since `reset_peak_memory`, else of the process in all its life.

    Args:
        device: of the run.
    """
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.max_memory_allocated(device),
            "reserved": torch.cuda.max_memory_reserved(device),
        }
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def reset_peak_memory(device: torch.device) -> None:
    """Begin to count the peak of a GPU anew; nothing to do elsewhere.

    Args:
        device: of the run.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _tuples(value: Any) -> Any:  # noqa: ANN401  (JSON)
    """Lists become what records hold."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _row(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)[None]
