"""Pages of the records that a run begins with: prompt, request, latents, schedule, condition, and the loaded models.

Read next: `repr_run.py`.
"""

from torch import Tensor, nn

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.guidance_scale import scale_words
from cosmos3_lab.latents import Latents
from cosmos3_lab.prompt import Cosmos3TokenizedPrompt
from cosmos3_lab.repr_html import Plain, TensorRow, field_table, image, page, tensor_table, text_block
from cosmos3_lab.repr_pictures import cache_picture, count_text, latents_picture, parameters_picture, schedule_picture
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.transformer import Cosmos3Condition


def prompt_page(prompt: Cosmos3TokenizedPrompt) -> str:
    """Ids and text."""
    count = prompt.text_ids.shape[-1]
    fields = [
        ("text_ids", prompt.text_ids, f"token ids: {_ends(prompt.text_ids)}"),
        ("text_mask", prompt.text_mask, f"1 where a token counts: {int(prompt.text_mask.sum())} of {count}"),
        ("text", Plain(f"{len(prompt.text)} characters"), "what went into the chat template, metadata included"),
    ]
    return page("Cosmos3TokenizedPrompt", f"{count} tokens", [field_table(fields), text_block(prompt.text, name="text")])


def _ends(ids: Tensor, *, first: int = 5, last: int = 3) -> str:
    """The first and the last ids; only those are copied."""
    if ids.numel() <= first + last:
        return ", ".join(map(str, ids.flatten().tolist()))
    return f"{', '.join(map(str, ids[0, :first].tolist()))} ... {', '.join(map(str, ids[0, -last:].tolist()))}"


def request_page(request: Cosmos3T2VRequest) -> str:
    """Every field, and the noise where it is given."""
    t, h, w = request.video_shape
    kind = "silent (T2V)" if request.sound_frames is None else "with sound (T2AV)"
    fields = [
        ("text_ids", request.text_ids, f"the prompt's {request.text_ids.shape[1]} tokens"),
        ("text_mask", request.text_mask, "1 where a token counts"),
        ("neg_text_ids", request.neg_text_ids, f"the negative prompt's {request.neg_text_ids.shape[1]} tokens"),
        ("neg_text_mask", request.neg_text_mask, "1 where a token counts"),
        ("video_shape", request.video_shape, "latent grid: frames, rows, columns (not pixels)"),
        ("fps", request.fps, "frames a second"),
        ("num_inference_steps", request.num_inference_steps, "solver steps"),
        ("guidance_scale", Plain(scale_words(request.guidance_scale)), "w of classifier-free guidance, 1 is none"),
        ("seed", request.seed, "of the initial noise" + ("" if request.noise is None else "; not used, there is noise")),
        ("noise", request.noise, "initial noise instead of the seed's"),
        ("sound_frames", request.sound_frames, "number of sound latents, None for silence"),
        ("sound_dim", request.sound_dim, "channels of a sound latent, None: as the checkpoint says"),
        ("sound_latent_fps", request.sound_latent_fps, "sound latents a second, None: as the checkpoint says"),
        ("preset", request.preset and Plain(request.preset.name), "recipe whose prompt rules made the tokens"),
    ]
    parts = [field_table(fields)]
    if request.noise is not None:
        parts += [tensor_table(latents_rows("noise", request.noise, "")), image(latents_picture({"noise": request.noise}))]
    return page("Cosmos3T2VRequest", f"{t} latent frames of {h}x{w}, {kind}", parts)


def latents_rows(name: str, latents: Latents | None, meaning: str) -> list[TensorRow]:
    """Rows of a table of tensors: one for the video, one for the sound, none for what is None.

    Args:
        name: of the latents.
        latents: to measure.
        meaning: in a few words.
    """
    if latents is None:
        return []
    rows: list[TensorRow] = [(f"{name}.video", latents.video, meaning)]
    return rows if latents.sound is None else [*rows, (f"{name}.sound", latents.sound, meaning)]


def latents_page(latents: Latents) -> str:
    """Statistics, and some frames."""
    rows: list[TensorRow] = [("video", latents.video, "video latents [1, C, t, h, w]")]
    parts = []
    if latents.sound is None:
        parts = [field_table([("sound", None, "a silent video")])]
    else:
        rows.append(("sound", latents.sound, "sound latents [1, n_sound, d_sound]"))
    name = "video" if len(latents.video) == 1 else f"video, 1 of {len(latents.video)}"
    summary = f"{latents.video.shape[2]} latent frames" + ("" if latents.sound is None else " and sound")
    return page("Latents", summary, [tensor_table(rows), *parts, image(latents_picture({name: latents}))])


def schedule_page(schedule: Schedule) -> str:
    """The numbers and their curve."""
    fields = [
        ("name", Plain(schedule.name), "the rule that made it"),
        ("flow_shift", schedule.flow_shift, "bends the sigmas towards noise, None where there is none"),
        ("num_steps", schedule.num_steps, "n, solver steps"),
    ]
    tensors = [
        ("sigmas", schedule.sigmas, "noise levels, the last one is 0"),
        ("timesteps", schedule.timesteps, "what the network is told at each step"),
    ]
    parts = [field_table(fields), tensor_table(tensors), image(schedule_picture(schedule))]
    return page("Schedule", f"{schedule.name}, {schedule.num_steps} steps", parts)


def condition_page(condition: Cosmos3Condition) -> str:
    """Counts of tokens, size and statistics of the cache."""
    layout, kv = condition.layout, condition.cached_kv
    size = sum(t.numel() * t.element_size() for pair in kv for t in (pair.k, pair.v))
    fields = [
        ("cached_kv", Plain(f"{len(kv)} LayerKV, {size / 2**20:.1f} MiB"), "keys and values of the text, one pair per layer"),
        (
            "freqs_gen",
            Plain(f"Rope {list(condition.freqs_gen.cos.shape)}"),
            "cosine and sine that tell media tokens their places",
        ),
        ("layout.s_text", layout.s_text, "text tokens"),
        ("layout.video_shape", layout.video_shape, "latent grid: frames, rows, columns"),
        ("layout.patch", layout.patch, "latent pixels along a side of a video token"),
        ("layout.n_video", layout.n_video, f"video tokens, {'x'.join(map(str, layout.video_grid))}"),
        ("layout.n_sound", layout.n_sound, "sound tokens"),
    ]
    last = len(kv) - 1
    ends = {0: kv[0], last: kv[last]}  # of one layer only one row
    tensors = [
        (f"cached_kv[{i}].{name}", getattr(pair, name), f"{word} of layer {i}: tokens, heads, channels")
        for i, pair in ends.items()
        for name, word in (("k", "keys"), ("v", "values"))
    ]
    parts = [field_table(fields), tensor_table(tensors), image(cache_picture(kv))]
    summary = f"{layout.s_text} text tokens in {len(kv)} layers, read by {layout.s_gen} media tokens"
    return page("Cosmos3Condition", summary, parts)


def models_page(models: Cosmos3Models) -> str:
    """Parts, their sizes, and the settings that they were made for."""
    c, d = models.config, models.defaults
    tower = models.transformer
    shapes = f"{c.num_hidden_layers} layers of {c.hidden_size}"
    closed = tower.gen.proj_in.weight.device.type == "meta"
    fields = [
        ("transformer.und", _module_text(tower.und), f"text tower, {shapes}, once per prompt"),
        ("transformer.gen", _module_text(tower.gen), f"media tower, {shapes}, every step"),
        ("vae", _module_text(models.vae), "video decoder, and its encoder where asked for"),
        ("avae", models.avae and _module_text(models.avae), "sound decoder, None for silent runs"),
        ("configs.folder", Plain(str(models.folder)), "where it was loaded from"),
        ("fingerprint", Plain(models.fingerprint), "of the transformer's files and config"),
        ("device", Plain(str(models.device)), "where the work happens"),
        ("placement", Plain(models.placement), "resident: all on the device; split: one tower at a time"),
        ("quantized", Plain(str(models.quantized)), "layers rounded to 8 bits, a loss; None: as stored"),
        ("load_seconds", Plain(f"{models.load_seconds:.2f}"), "how long loading took"),
        ("load_bytes", Plain(f"{models.load_bytes / 2**20:.1f} MiB"), "how much was read"),
        ("defaults", Plain(_defaults_text(models)), "what a request is where nothing else is said"),
    ]
    parts = {"text tower": tower.und, "media tower": tower.gen, "video VAE": models.vae, "sound AVAE": models.avae}
    counts = {name: _parameters(module) for name, module in parts.items() if module is not None}
    summary = f"{d.name}, {'closed' if closed else f'{tower.dtype}, {models.device}'}"
    return page("Cosmos3Models", summary, [field_table(fields), image(parameters_picture(counts))])


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _module_text(module: nn.Module) -> Plain:
    return Plain(f"{type(module).__name__}, {count_text(_parameters(module))} parameters")


def _defaults_text(models: Cosmos3Models) -> str:
    d = models.defaults
    shift = "" if d.flow_shift is None else f", flow_shift {d.flow_shift:g}"
    size = f"{d.num_frames} frames of {d.height}x{d.width} at {d.fps:g} fps"
    return f"{size}, {d.num_inference_steps} steps, guidance {d.guidance_scale:g}{shift}, preset {d.preset}"
