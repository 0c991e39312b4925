"""Cosmos3-Nano opened up: every stage from a prompt to a video with sound, one inspectable function each.

The names below are in the order of the story. Start with `load_cosmos3` and `generate`; then call the stages one by one.
"""

from cosmos3_lab.captions import NegativePrompt, cosmos3_generation_caption, default_negative_prompt
from cosmos3_lab.prompt import Cosmos3Processor, Cosmos3TokenizedPrompt, TokenRow, token_table
from cosmos3_lab.sizes import NANO, MediaSpec, effective_num_frames, pixel_to_latent_shape, sound_latent_frames
from cosmos3_lab.prompt_words import PromptWord, prompt_words
from cosmos3_lab.guidance_scale import Guidance, GuidanceInterval
from cosmos3_lab.request import Cosmos3T2VRequest, make_request
from cosmos3_lab.latents import Latents, init_latents, patchify, unpatchify
from cosmos3_lab.schedule import (
    Schedule,
    add_noise,
    flow_schedule,
    half_log_snr,
    karras_schedule,
    log_snr,
    schedule_from_config,
    schedule_from_sigmas,
    velocity_to_x0,
)
from cosmos3_lab.presets import PRESETS, Preset, get_preset
from cosmos3_lab.positions import (
    TokenLayout,
    compute_mrope_position_ids_sound,
    compute_mrope_position_ids_text,
    compute_mrope_position_ids_vision,
    mrope_cos_sin,
)
from cosmos3_lab.towers import Cosmos3Config, Cosmos3Transformer
from cosmos3_lab.transformer import (
    Cosmos3Condition,
    embed_gen_tokens,
    encode_condition,
    predict_velocity,
    project_velocity,
    run_gen_layers,
)
from cosmos3_lab.guidance import GuidedVelocity, classifier_free_guidance, optimized_scale, rescale_guided, zero_init
from cosmos3_lab.unipc import (
    UniPCState,
    UniPCStep,
    unipc_correct,
    unipc_init,
    unipc_predict,
    unipc_restart,
    unipc_step,
)
from cosmos3_lab.solvers import Solver, euler_step, solver_step
from cosmos3_lab.untrusted import CheckpointError
from cosmos3_lab.checkpoint import Cosmos3Models, load_cosmos3
from cosmos3_lab.inspection import inspect_checkpoint
from cosmos3_lab.denoise import (
    DenoiseInputs,
    DenoiseState,
    StepRecord,
    denoise,
    denoise_step,
    prepare_denoise,
)
from cosmos3_lab.records import guidance_saving
from cosmos3_lab.branch import fork, load_state, save_state
from cosmos3_lab.edits import Region, denoise_keeping, paste, renoise, restart_at, select_sound, select_video
from cosmos3_lab.tree import Branch, RunTree, branch_off, iter_resume, move_state, plant, prune, resume, x0_of
from cosmos3_lab.tree_files import load_tree, save_tree
from cosmos3_lab.walks import blend_conditions, blend_inputs, expected_clip, mean_latents, slerp, slerp_latents
from cosmos3_lab.video_vae import decode_video, encode_video, iter_decode_video
from cosmos3_lab.sound_avae import decode_sound, encode_sound
from cosmos3_lab.media import Cosmos3GenerationOutput, read_mp4, save_mp4, show_video, to_uint8_frames
from cosmos3_lab.prepare import make_processor, prepare_request
from cosmos3_lab.decode import decode_latents
from cosmos3_lab.run import Generation
from cosmos3_lab.generate import generate, run_request
from cosmos3_lab.replay import Replay, replay
from cosmos3_lab.passes import Activation, Pass, Recording
from cosmos3_lab.probe import activation_names, patch, record
from cosmos3_lab.attention_maps import LayerAttention, attention_rows, layer_attention, record_attention
from cosmos3_lab.word_effects import WordEffects, attention_shares, word_effects
from cosmos3_lab.grid import CompareGrid, GridCell, fill_grid, open_grid
from cosmos3_lab.trace import Trace, open_trace, trace_steps

__version__ = "0.1.0"
