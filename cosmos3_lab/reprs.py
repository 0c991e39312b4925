"""What a notebook shows for a record whose name stands on a cell's last line: fields, statistics, a small picture.

    mimebundle(record)  ->  {"text/plain": its repr, "text/html": tables and pictures}

Looking changes nothing, and copies a few numbers and a few latent frames from a GPU. The words beside the fields are short;
`notebooks/README.md` has a glossary of them.

Read next: `repr_start.py` and `repr_run.py` (a function for each record), `repr_html.py` (tables), `repr_pictures.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, StepRecord
from cosmos3_lab.guidance import GuidedVelocity
from cosmos3_lab.latents import Latents
from cosmos3_lab.media import Cosmos3GenerationOutput
from cosmos3_lab.prompt import Cosmos3TokenizedPrompt
from cosmos3_lab.repr_run import (
    generation_page,
    inputs_page,
    output_page,
    solver_page,
    state_page,
    step_page,
    velocity_page,
)
from cosmos3_lab.repr_start import condition_page, latents_page, models_page, prompt_page, request_page, schedule_page
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.run import Generation
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.transformer import Cosmos3Condition
from cosmos3_lab.unipc import UniPCState

# In the order of the story.
PAGES: Mapping[type, Callable[[Any], str]] = {
    Cosmos3Models: models_page,
    Cosmos3TokenizedPrompt: prompt_page,
    Cosmos3T2VRequest: request_page,
    Latents: latents_page,
    Schedule: schedule_page,
    Cosmos3Condition: condition_page,
    DenoiseInputs: inputs_page,
    DenoiseState: state_page,
    UniPCState: solver_page,
    GuidedVelocity: velocity_page,
    StepRecord: step_page,
    Cosmos3GenerationOutput: output_page,
    Generation: generation_page,
}


def mimebundle(record: object) -> dict[str, str]:
    """What IPython asks a record for.

    Args:
        record: of a class in `PAGES`, or of one made from it.
    """
    draw = next(PAGES[made_from] for made_from in type(record).__mro__ if made_from in PAGES)
    return {"text/plain": repr(record), "text/html": draw(record)}
