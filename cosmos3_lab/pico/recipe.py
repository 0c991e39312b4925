"""What pico is and how it is trained, in numbers: one record for the model in the box, one that runs in seconds in CI.

Read next: `train.py`.
"""

from dataclasses import dataclass

from cosmos3_lab.sound_avae import SoundAVAEConfig
from cosmos3_lab.towers import Cosmos3Config
from cosmos3_lab.video_vae import VideoVAEConfig


@dataclass(frozen=True)
class Phase:
    """How one of the three models is trained.

    Attributes:
        steps: optimizer steps.
        batch: clips in one step (of the video VAE: clips of 17 frames).
        rate: AdamW's learning rate after warm-up, for everything that Muon does not train.
        warmup: steps of linear warm-up.
        flat: share of the steps after which the rate starts to fall, linearly to 0.
        ema: decay of the averaged weights, which are the ones that ship.
    """

    steps: int
    batch: int
    rate: float
    warmup: int
    flat: float
    ema: float


@dataclass(frozen=True)
class Recipe:
    """A model and its training.

    Attributes:
        name: of the recipe.
        vae, avae, transformer: shapes.
        vae_phase, avae_phase, transformer_phase: how long and how fast.
        frames, side: of the clips; a latent frame more is four frames more.
        sound_latents: of a clip.
        crop: sound latents that the AVAE sees at once.
        pool: clips kept encoded for the transformer; `fresh` of them are replaced every 25 steps.
        negative_prompt: of `assets/negative_prompt.json`, what the unconditional branch is told.
    """

    name: str
    vae: VideoVAEConfig
    avae: SoundAVAEConfig
    transformer: Cosmos3Config
    vae_phase: Phase
    avae_phase: Phase
    transformer_phase: Phase
    frames: int = 33
    side: int = 96
    sound_latents: int = 52
    crop: int = 32
    pool: int = 49152
    fresh: int = 96

    @property
    def latent_frames(self) -> int:
        """Latent frames of a whole clip."""
        return (self.frames - 1) // self.vae.scale_factor_temporal + 1


# The keys are some of those that Nano's structured negative prompt has. Short, because every token costs time on a laptop.
NEGATIVE_PROMPT = {"subjects": [{"description": "torn shapes, ghosts, flicker"}], "audio_description": "noise"}

_VAE = VideoVAEConfig(
    base_dim=32,
    decoder_base_dim=48,
    z_dim=16,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temperal_downsample=(True, True),
    scale_factor_spatial=8,
    latents_mean=(0.0,) * 16,
    latents_std=(1.0,) * 16,
)
_AVAE = SoundAVAEConfig(
    sampling_rate=16000,
    hop_size=640,
    vocoder_input_dim=16,
    dec_dim=16,
    dec_c_mults=(1, 2, 4, 8),
    dec_strides=(4, 4, 5, 8),
    enc_dim=32,
    enc_num_blocks=1,
    enc_latent_dim=32,
    enc_c_mults=(1, 2, 4),
    enc_strides=(2, 4, 5),
    normalize_volume=False,
)
_TRANSFORMER = Cosmos3Config(
    hidden_size=256,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    intermediate_size=768,
    vocab_size=768,
    rope_theta=1000.0,
    mrope_section=(6, 5, 5),
    latent_channel=16,
    sound_dim=16,
)

RECIPES: dict[str, Recipe] = {
    "pico": Recipe(
        "pico",
        _VAE,
        _AVAE,
        _TRANSFORMER,
        vae_phase=Phase(steps=10_000, batch=16, rate=1.5e-3, warmup=100, flat=0.4, ema=0.999),
        avae_phase=Phase(steps=8_000, batch=32, rate=1.5e-3, warmup=100, flat=0.5, ema=0.998),
        transformer_phase=Phase(steps=70_000, batch=512, rate=1e-3, warmup=300, flat=0.55, ema=0.9995),
    ),
    # The same path in half a minute on two CPU cores; it learns a little, and that is what its test looks at.
    "tiny": Recipe(
        "tiny",
        VideoVAEConfig(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=4,
            dim_mult=(1, 1, 1),
            num_res_blocks=1,
            temperal_downsample=(True, True),
            scale_factor_spatial=8,
            latents_mean=(0.0,) * 4,
            latents_std=(1.0,) * 4,
        ),
        SoundAVAEConfig(
            sampling_rate=16000,
            hop_size=640,
            vocoder_input_dim=4,
            dec_dim=4,
            dec_c_mults=(1, 2, 2, 2),
            dec_strides=(4, 4, 5, 8),
            enc_dim=8,
            enc_num_blocks=1,
            enc_latent_dim=8,
            enc_c_mults=(1, 1, 1),
            enc_strides=(2, 4, 5),
            normalize_volume=False,
        ),
        Cosmos3Config(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            intermediate_size=128,
            vocab_size=768,
            rope_theta=1000.0,
            mrope_section=(6, 5, 5),
            latent_channel=4,
            sound_dim=4,
        ),
        vae_phase=Phase(steps=40, batch=2, rate=3e-3, warmup=5, flat=0.5, ema=0.9),
        avae_phase=Phase(steps=40, batch=2, rate=3e-3, warmup=5, flat=0.5, ema=0.9),
        transformer_phase=Phase(steps=60, batch=16, rate=3e-3, warmup=5, flat=0.5, ema=0.9),
        frames=9,
        side=32,
        sound_latents=15,
        crop=12,
        pool=64,
        fresh=4,
    ),
}
