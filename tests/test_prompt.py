"""Metadata rules, negative prompts, chat template, token roles, and tokenizer folders that cannot work."""

import json
import shutil

import pytest
import torch

from cosmos3_lab import Cosmos3Processor, cosmos3_generation_caption, default_negative_prompt, token_table
from cosmos3_lab.captions import DURATION, INVERSE_DURATION, INVERSE_RESOLUTION, RESOLUTION

CLIP = {"num_frames": 189, "height": 720, "width": 1280, "fps": 24.0}
STILL = {**CLIP, "num_frames": 1}
DUR = "The video is 7.9 seconds long and is of 24 FPS."
RES = "This video is of 720x1280 resolution."
NOT = "The video is not 7.9 seconds long and is not of 24 FPS. This video is not of 720x1280 resolution."
CAR = "A red sports car driving along a coastal road at sunset."


@pytest.fixture(scope="module")
def make(tiny_folder):
    """A processor of the tiny checkpoint, with the clip of the golden strings."""
    return lambda **choices: Cosmos3Processor(tiny_folder / "text_tokenizer", **CLIP | choices)


@pytest.fixture
def own_folder(tiny_folder, tmp_path):
    """A tokenizer folder that a test may change."""
    return shutil.copytree(tiny_folder / "text_tokenizer", tmp_path / "text_tokenizer")


def negative_text(processor, negative_prompt):
    return processor.tokenize_negative(negative_prompt).text


# --------------------------------------------------------------------------------------------------------- metadata


def test_format_strings_byte_for_byte():
    assert DURATION == "The video is {duration:.1f} seconds long and is of {fps:.0f} FPS."
    assert RESOLUTION.replace("{medium}", "video") == "This video is of {height}x{width} resolution."
    assert INVERSE_DURATION == "The video is not {duration:.1f} seconds long and is not of {fps:.0f} FPS."
    assert INVERSE_RESOLUTION.replace("{medium}", "video") == "This video is not of {height}x{width} resolution."


@pytest.mark.parametrize(
    ("prompt", "metadata", "text"),
    [
        (
            CAR,
            "inject",
            "A red sports car driving along a coastal road at sunset. The video is 7.9 seconds long and is of 24 FPS. "
            "This video is of 720x1280 resolution.",
        ),
        (CAR, "sentences", f"{CAR} {DUR} {RES}"),
        (CAR, "none", CAR),
        ("Stop!", "inject", f"Stop!. {DUR} {RES}"),
        ("Stop!", "sentences", f"Stop!. {DUR} {RES}"),
        ("Why?", "inject", f"Why?. {DUR} {RES}"),
        ("wait...", "inject", f"wait. {DUR} {RES}"),
        ("wait...", "sentences", f"wait. {DUR} {RES}"),
        ("", "inject", f". {DUR} {RES}"),
        ("", "sentences", f"{DUR} {RES}"),
        ("...", "inject", f". {DUR} {RES}"),
        ("...", "sentences", f"{DUR} {RES}"),
        ("  hi...  ", "inject", f"hi. {DUR} {RES}"),
        ("  hi...  ", "sentences", f"  hi...  . {DUR} {RES}"),
        ("  hi...  ", "none", "  hi...  "),
        ("two\nlines.", "inject", f"two\nlines. {DUR} {RES}"),
    ],
)
def test_plain_text(prompt, metadata, text):
    assert cosmos3_generation_caption(prompt, **CLIP, metadata=metadata) == text


@pytest.mark.parametrize(("metadata", "medium"), [("inject", "video"), ("sentences", "image")])
def test_one_frame_has_no_duration(metadata, medium):
    assert cosmos3_generation_caption("A cat.", **STILL, metadata=metadata) == f"A cat. This {medium} is of 720x1280 resolution."


def test_numbers_of_another_clip():
    text = cosmos3_generation_caption("x", num_frames=25, height=192, width=320, fps=23.976)
    assert text == "x. The video is 1.0 seconds long and is of 24 FPS. This video is of 192x320 resolution."


ADDED = '"duration": "7s", "fps": 24.0, "resolution": {"H": 720, "W": 1280}'


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('{"fps": 3, "a": "é"}', '{"fps": 24.0, "a": "\\u00e9", "duration": "7s", "resolution": {"H": 720, "W": 1280}}'),
        ('{"a": 1}', '{"a": 1, ' + ADDED + "}"),
        ("{}", "{" + ADDED + "}"),
        (' \n{"a":[1,2]} ', '{"a": [1, 2], ' + ADDED + "}"),
        (
            '{"resolution": "big", "b": 2, "duration": 9}',
            '{"resolution": {"H": 720, "W": 1280}, "b": 2, "duration": "7s", "fps": 24.0}',
        ),
        ('{"aspect_ratio": "1,1"}', '{"aspect_ratio": "1,1", ' + ADDED + "}"),
    ],
)
def test_json_objects_are_injected(prompt, text):
    assert cosmos3_generation_caption(prompt, **CLIP) == text


@pytest.mark.parametrize("prompt", ["[1, 2]", '"text"', "12", "null", '{"a": 1', "{'a': 1}", '{"a": 1} and more'])
def test_what_is_not_a_json_object_is_plain_text(prompt):
    assert cosmos3_generation_caption(prompt, **CLIP) == f"{prompt}. {DUR} {RES}"


def test_deeply_nested_json_is_plain_text_instead_of_a_crash():
    bomb = '{"a":' * 10_000
    assert cosmos3_generation_caption(bomb, **CLIP) == f"{bomb}. {DUR} {RES}"


def test_aspect_ratio_is_injected_only_when_given():
    text = cosmos3_generation_caption('{"a": 1}', **CLIP, aspect_ratio="16,9")
    assert text == '{"a": 1, ' + ADDED + ', "aspect_ratio": "16,9"}'
    overwritten = cosmos3_generation_caption('{"aspect_ratio": "1,1"}', **CLIP, aspect_ratio="16,9")
    assert overwritten == '{"aspect_ratio": "16,9", ' + ADDED + "}"


def test_one_frame_drops_duration_and_fps_from_json():
    text = cosmos3_generation_caption('{"duration": "7s", "a": 1, "fps": 3}', **STILL)
    assert text == '{"a": 1, "resolution": {"H": 720, "W": 1280}}'


@pytest.mark.parametrize(
    ("metadata", "text"), [("sentences", '{"fps": 3}. ' + f"{DUR} {RES}"), ("none", '{"fps": 3}')], ids=["sentences", "none"]
)
def test_json_under_the_other_rules_stays_as_written(metadata, text):
    assert cosmos3_generation_caption('{"fps": 3}', **CLIP, metadata=metadata) == text


def test_duration_in_json_is_truncated():
    text = cosmos3_generation_caption("{}", num_frames=5, height=16, width=32, fps=16.0)
    assert json.loads(text) == {"duration": "0s", "fps": 16.0, "resolution": {"H": 16, "W": 32}}


# -------------------------------------------------------------------------------------------------------- processor


def test_processor_states_the_effective_number_of_frames(make):
    assert make(num_frames=100).tokenize("x").text == cosmos3_generation_caption("x", **CLIP | {"num_frames": 97})
    assert "4.0 seconds" in make(num_frames=100).tokenize("x").text


def test_append_metadata_false_turns_all_metadata_off(make):
    cond, uncond = make(append_metadata=False, negative_metadata="inverse").tokenize_pair(CAR, "blurry")
    assert (cond.text, uncond.text) == (CAR, "blurry")


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(make, prompt):
    with pytest.raises(ValueError, match="got an empty prompt"):
        make().tokenize_pair(prompt)


@pytest.mark.parametrize(("argument", "value"), [("fps", 0.0), ("num_frames", 0)])
def test_processor_refuses_impossible_clips(make, argument, value):
    with pytest.raises(ValueError, match=f"got {argument} 0"):
        make(**{argument: value})


@pytest.mark.parametrize("system", [None, "Be brief.", "", "unicode 🎈 <|im_end|>"])
def test_chat_template_and_boundary_tokens(make, system):
    processor = make(system_prompt=system)
    prompt = processor.tokenize(CAR)
    head = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    chat = f"{head}<|im_start|>user\n{CAR} {DUR} {RES}<|im_end|>\n<|im_start|>assistant\n"
    ids = processor.tokenizer(chat, add_special_tokens=False)["input_ids"]
    vocabulary = processor.tokenizer.get_vocab()
    assert prompt.text_ids[0].tolist() == [*ids, vocabulary["<|im_end|>"], vocabulary["<|vision_start|>"]]
    assert prompt.text_ids.dtype == prompt.text_mask.dtype == torch.int64
    assert prompt.text_mask.shape == prompt.text_ids.shape == (1, len(ids) + 2)
    assert prompt.text_mask.unique().tolist() == [1]


def test_both_branches_get_the_system_prompt(make):
    processor = make(system_prompt="Be brief.")
    cond, uncond = processor.tokenize_pair("a", "b")
    start = processor.tokenizer("<|im_start|>system\nBe brief.<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert cond.text_ids[0, : len(start)].tolist() == uncond.text_ids[0, : len(start)].tolist() == start


def test_repr_is_short(make):
    assert repr(make().tokenize("a" * 500)).startswith("Cosmos3TokenizedPrompt(")
    assert len(repr(make().tokenize("a" * 500))) < 120
    assert "189 frames 720x1280 at 24 fps" in repr(make())


# -------------------------------------------------------------------------------------------------------- negatives


@pytest.mark.parametrize(
    ("rule", "negative", "text"),
    [
        ("none", "blurry.", "blurry."),
        ("none", '{"a": "é"}', '{"a": "é"}'),
        ("none", "", ""),
        ("same", "blurry.", f"blurry. {DUR} {RES}"),
        ("same", '{"a": 1}', '{"a": 1}. ' + f"{DUR} {RES}"),  # sentences behind the brace, nothing injected
        ("same", "", ""),
        ("inverse", "blurry...", f"blurry. {NOT}"),
        ("inverse", " blurry. ", f" blurry. . {NOT}"),
        ("inverse", "", NOT),
    ],
)
def test_negative_rules(make, rule, negative, text):
    assert negative_text(make(negative_metadata=rule), negative) == text


def test_inverse_rule_for_one_frame(make):
    processor = make(negative_metadata="inverse", num_frames=1)
    assert negative_text(processor, "blurry") == "blurry. This image is not of 720x1280 resolution."


def test_none_means_the_structured_default_or_empty(make):
    default = default_negative_prompt("nowhere").text
    assert negative_text(make(negative_metadata="none"), None) == default
    assert negative_text(make(negative_metadata="same"), None) == f"{default}. {DUR} {RES}"
    assert negative_text(make(negative_metadata="none", negative_default="empty"), None) == ""
    assert negative_text(make(negative_metadata="inverse", negative_default="empty"), None) == NOT


def test_the_pair_is_positive_then_negative(make):
    cond, uncond = make(negative_metadata="none").tokenize_pair("a", "b")
    assert cond.text.startswith("a. The video")
    assert uncond.text == "b"


def test_a_checkpoints_own_negative_wins(own_folder):
    (own_folder.parent / "assets").mkdir()
    (own_folder.parent / "assets" / "negative_prompt.json").write_text('{\n  "b": "schön",\n  "a": 1\n}\n', encoding="utf-8")
    found = default_negative_prompt(own_folder.parent)
    assert found.text == '{"b": "sch\\u00f6n", "a": 1}'
    assert "checkpoint" in found.source
    assert not found.is_reference
    assert negative_text(Cosmos3Processor(own_folder, negative_metadata="none"), None) == found.text


@pytest.mark.parametrize("content", ["[]", '"text"', "{", "", "not json"])
def test_a_broken_negative_file_is_named(tmp_path, content):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "negative_prompt.json").write_text(content)
    with pytest.raises(ValueError, match="negative_prompt.json is not (a JSON object|JSON)"):
        default_negative_prompt(tmp_path)


TOP_LEVEL = (
    "subjects background_setting lighting aesthetics cinematography style_medium artistic_style context actions "
    "text_and_signage_elements segments transitions temporal_caption audio_description physical_realism"
)
SUBJECT = (
    "description appearance_details relationship location relative_size orientation pose action state_changes clothing "
    "expression gender age skin_tone_and_texture facial_features number_of_subjects number_of_arms number_of_legs"
)


def test_the_labs_own_negative_has_the_keys_of_the_reference(tmp_path):
    found = default_negative_prompt(tmp_path)
    fields = json.loads(found.text)
    assert "lab" in found.source
    assert not found.is_reference  # the reference's text is not part of this project
    assert " ".join(fields) == TOP_LEVEL
    assert [" ".join(subject) for subject in fields["subjects"]] == [SUBJECT] * 3
    assert list(fields["lighting"]) == ["conditions", "direction", "shadows", "illumination_effect"]
    assert list(fields["aesthetics"]) == ["composition", "color_scheme", "mood_atmosphere", "patterns"]
    camera = ["camera_motion", "framing", "camera_angle", "depth_of_field", "focus", "lens_focal_length"]
    assert list(fields["cinematography"]) == camera
    assert (len(fields["actions"]), len(fields["segments"])) == (1, 1)
    assert not fields["text_and_signage_elements"]
    assert not fields["transitions"]
    assert not fields["audio_description"]


@pytest.mark.parametrize("key", ["duration", "fps", "resolution", "aspect_ratio"])
def test_the_labs_own_negative_states_no_metadata(tmp_path, key):
    assert f'"{key}"' not in default_negative_prompt(tmp_path).text


# ------------------------------------------------------------------------------------------------------ token table


ASCII = [
    "a red ball",
    "assistant",
    "user\nassistant",
    "  two  spaces\n\n\ttab",
    "Stop!",
    "...",
    "<|im_end|>\n<|im_start|>assistant\nyes",
    "<|vision_start|>",
    '{"fps": 3, "a": "b"}',
]
UNICODE = ["naïve 日本語 🎈", "e\u0301 decomposed", "\ue000 private \ue001", "\U0001f468\u200d\U0001f469 joined", "مرحبا"]


def by_role(rows):
    texts = dict.fromkeys(("template", "system", "prompt", "metadata", "boundary"), "")
    for row in rows:
        texts[row.role] += row.string
    return texts


@pytest.mark.parametrize("system", [None, "user prompt", "naïve 🎈"])
@pytest.mark.parametrize("prompt", ASCII + UNICODE)
def test_strings_of_the_table_are_the_chat(make, prompt, system):
    processor = make(system_prompt=system)
    head = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    text = cosmos3_generation_caption(prompt, **CLIP)
    chat = f"{head}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<|im_end|><|vision_start|>"
    assert "".join(row.string for row in token_table(processor, prompt)) == chat


@pytest.mark.parametrize("system", [None, "naïve 🎈"])
@pytest.mark.parametrize("prompt", ASCII + UNICODE)
def test_ids_of_the_table_are_the_tokens(make, prompt, system):
    processor = make(system_prompt=system)
    rows = token_table(processor, prompt)
    assert [row.id for row in rows] == processor.tokenize(prompt).text_ids[0].tolist()
    assert [row.index for row in rows] == list(range(len(rows)))


def test_roles_of_plain_text(make):
    roles = by_role(token_table(make(system_prompt="system"), "assistant"))
    assert roles == {
        "template": "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n",
        "system": "system",
        "prompt": "assistant",
        "metadata": f". {DUR} {RES}",
        "boundary": "<|im_end|><|vision_start|>",
    }


def test_roles_of_a_prompt_that_contains_the_template(make):
    roles = by_role(token_table(make(), "<|im_end|>\n<|im_start|>assistant\nyes"))
    assert roles["prompt"] == "<|im_end|>\n<|im_start|>assistant\nyes"
    assert roles["template"] == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"


def test_roles_of_json(make):
    roles = by_role(token_table(make(), '{"fps": 3, "a": "b"}'))
    assert roles["prompt"] == '{, "a": "b"}'
    assert roles["metadata"] == '"fps": 24.0, "duration": "7s", "resolution": {"H": 720, "W": 1280}'


@pytest.mark.parametrize("prompt", UNICODE)
def test_roles_of_unicode(make, prompt):
    processor = make(system_prompt="système")
    roles = [row.role for row in token_table(processor, prompt)]
    runs = [role for role, before in zip(roles, [None, *roles], strict=False) if role != before]
    assert runs == ["template", "system", "template", "prompt", "metadata", "template", "boundary"]
    counts = {role: roles.count(role) for role in ("system", "prompt", "metadata")}
    pieces = {"system": "système", "prompt": prompt, "metadata": f". {DUR} {RES}"}
    assert counts == {role: len(processor.tokenizer(text, add_special_tokens=False).input_ids) for role, text in pieces.items()}


def test_table_of_the_negative_prompt(make):
    processor = make(negative_metadata="inverse")
    rows = token_table(processor, negative_prompt="blurry")
    assert [row.id for row in rows] == processor.tokenize_negative("blurry").text_ids[0].tolist()
    assert by_role(rows)["prompt"] == "blurry"
    assert by_role(rows)["metadata"] == f". {NOT}"
    assert [row.id for row in token_table(processor)] == processor.tokenize_negative(None).text_ids[0].tolist()


def test_a_template_that_changes_the_text_has_no_roles(own_folder):
    template = own_folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("m['content']", "m['content'] | upper"))
    with pytest.raises(ValueError, match="chat template changes the text"):
        token_table(Cosmos3Processor(own_folder), "a red ball")


# -------------------------------------------------------------------------------------------------- broken folders


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def without_vision_start(folder):
    def change(content):
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|vision_start|>"]

    edit(folder / "tokenizer.json", change)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "expected a checkpoint's text_tokenizer folder"),
        (lambda f: (f / "tokenizer.json").unlink(), "expected a checkpoint's text_tokenizer folder"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "no readable tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text()[:900]), "not JSON"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "chat_template.jinja").unlink(), "lacks a chat template"),
        (lambda f: edit(f / "tokenizer_config.json", lambda c: c.pop("eos_token")), "lacks an end-of-text token"),
        (lambda f: edit(f / "tokenizer_config.json", lambda c: c.update(eos_token="")), "lacks an end-of-text token"),
        (without_vision_start, r"lacks the token <\|vision_start\|>"),
    ],
    ids=["no folder", "no file", "empty", "truncated", "broken config", "no template", "no eos", "empty eos", "no vision start"],
)
def test_broken_tokenizer_folders_are_named(own_folder, damage, message):
    damage(own_folder)
    with pytest.raises(ValueError, match=message) as error:
        Cosmos3Processor(own_folder)
    assert str(own_folder) in str(error.value)


def test_code_in_a_tokenizer_folder_is_not_run(own_folder, monkeypatch, tmp_path):
    """A folder may name a Python class of its own; it must neither be imported nor asked about."""
    ran = tmp_path / "ran"
    (own_folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
    custom = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    edit(own_folder / "tokenizer_config.json", lambda config: config.update(custom))
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked on the terminal"))
    with pytest.raises(ValueError, match="tokenizer"):
        Cosmos3Processor(own_folder)
    assert not ran.exists()


@pytest.mark.parametrize("template", ["{% broken", "no message here", "{{ 1 / 0 }}"])
def test_a_broken_chat_template_is_named(own_folder, template):
    (own_folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="chat template"):
        Cosmos3Processor(own_folder)


def test_half_a_surrogate_pair_is_refused(make):
    for call in (make().tokenize, make().tokenize_negative):
        with pytest.raises(ValueError, match="surrogate"):
            call("a \ud83c kite")


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_blank_negative_gets_no_metadata(make, blank):
    assert make(negative_metadata="same").tokenize_negative(blank).text == blank
