"""Trees of runs: forks leave parents alone, folders open in another process and go on bit for bit, damage is one clear error."""

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from checks import only_one_prompt_fits
from safetensors.torch import load_file

from cosmos3_lab import denoise, fork, load_cosmos3, prepare_denoise, prepare_request
from cosmos3_lab.branch import save_state
from cosmos3_lab.explore_figures import _in_lanes as in_lanes
from cosmos3_lab.explore_figures import plot_tree
from cosmos3_lab.figure_canvas import LabAxes
from cosmos3_lab.out_of_memory import OutOfMemoryError
from cosmos3_lab.plain import from_plain, to_plain
from cosmos3_lab.preview import latent_preview
from cosmos3_lab.reuse import encode_once
from cosmos3_lab.schedule import Schedule, flow_schedule
from cosmos3_lab.solvers import Solver
from cosmos3_lab.tree import branch_off, iter_resume, plant, prune, resume, x0_of
from cosmos3_lab.tree_files import load_tree, save_tree

STEPS = 4
PROMPT = "a red circle bounces on a blue background; low thuds"
OTHER = "a green square rises on a white background; silence"


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


@pytest.fixture(scope="module")
def prepared(pico):
    options = {"with_sound": True, "num_frames": 5, "num_inference_steps": STEPS}
    return prepare_denoise(pico, prepare_request(pico, PROMPT, **options))


@pytest.fixture(scope="module")
def tree(pico, prepared):
    """A root, two branches, one of them paused, and a branch of a branch."""
    grown = plant(pico, *prepared)
    grown = branch_off(pico, grown, "green", step=1, prompt=OTHER)
    grown = branch_off(pico, grown, "strong", step=2, guidance_scale=6.0, stop=3)
    return branch_off(pico, grown, "zeros", parent="green", step=2, latents=grown["green"].at(2).latents.map(torch.zeros_like))


def tensors(tree):
    """Every tensor of a tree's states, by place."""
    found = {}
    for branch in tree.branches:
        for state in branch.states:
            for name, solver in (("video", state.video), ("sound", state.sound)):
                parts = (solver.sample, solver.last_sample, *solver.x0_history)
                found |= {(branch.name, state.step_index, name, i): part for i, part in enumerate(parts)}
    return found


def equal(one, other):
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def last(steps):
    for state, _ in steps:
        found = state
    return found


# ------------------------------------------------------------------------------------------------------------- grow


def test_the_root_is_the_run(pico, prepared, tree):
    alone = last(denoise(pico.transformer, *prepared))
    assert torch.equal(tree["root"].result.video, alone.latents.video)
    assert tree["root"].kept == (0, 1, 2, 3, 4)
    assert [record.index for record in tree["root"].records] == [0, 1, 2, 3]


def test_a_branch_is_a_fork(pico, prepared, tree):
    request = prepare_request(pico, OTHER, with_sound=True, num_frames=5, num_inference_steps=STEPS)
    from cosmos3_lab import Cosmos3TokenizedPrompt

    prompt = Cosmos3TokenizedPrompt(request.text_ids, request.text_mask)
    forked = fork(pico, prepared[0], tree["root"].at(1), prompt=prompt)
    assert torch.equal(tree["green"].result.video, last(denoise(pico.transformer, *forked)).latents.video)
    assert torch.equal(tree["green"].result.sound, last(denoise(pico.transformer, *forked)).latents.sound)
    assert (tree["green"].parent, tree["green"].kept[0], tree["green"].note) == ("root", 1, f"prompt: {OTHER}")


def test_adding_a_branch_leaves_the_tree_and_the_parent_alone(pico, tree):
    before = {place: None if t is None else t.clone() for place, t in tensors(tree).items()}
    grown = branch_off(pico, tree, "more", step=0, guidance_scale=1.0)
    assert tree.names == ("root", "green", "strong", "zeros")
    assert grown.names == (*tree.names, "more")
    assert all(a is b for a, b in zip(grown.branches, tree.branches, strict=False))
    assert equal(before, tensors(tree))


def test_a_paused_branch_goes_on_as_if_it_had_not_paused(pico, tree):
    assert not tree["strong"].finished
    resumed = resume(pico, tree, "strong")
    through = branch_off(pico, prune(tree, "strong"), "strong", step=2, guidance_scale=6.0)
    assert resumed["strong"].finished
    assert torch.equal(resumed["strong"].result.video, through["strong"].result.video)
    assert resumed.names == tree.names
    assert len(resumed["strong"].records) == 2
    assert not tree["strong"].finished


def test_trees_come_step_by_step(pico, prepared):
    begun = plant(pico, *prepared, stop=1)
    assert plant(pico, *prepared, stop=0)["root"].kept == (0,)
    assert [t["root"].kept[-1] for t in iter_resume(pico, begun, "root")] == [2, 3, 4]


def test_fewer_states_can_be_kept(pico, prepared):
    sparse = plant(pico, *prepared, every=3)
    assert sparse["root"].kept == (0, 3, 4)
    assert len(sparse["root"].records) == STEPS
    with pytest.raises(ValueError, match="expected one that was kept: 0, 3, 4"):
        branch_off(pico, sparse, "x", step=1, guidance_scale=2.0)
    with pytest.raises(ValueError, match="every=0"):
        plant(pico, *prepared, every=0)


def test_a_pruned_branch_takes_its_children_along(tree):
    assert prune(tree, "green").names == ("root", "strong")
    assert tree.names == ("root", "green", "strong", "zeros")
    with pytest.raises(ValueError, match="the root"):
        prune(tree, "root")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("green", {"step": 0, "guidance_scale": 1.0}, "which is taken"),
        ("x", {"step": 0, "parent": "nobody", "guidance_scale": 1.0}, "expected one of 'root', 'green'"),
        ("x", {"step": 9, "guidance_scale": 1.0}, "expected one that was kept"),
    ],
)
def test_branches_that_cannot_be_are_refused(pico, tree, name, options, says):
    with pytest.raises(ValueError, match=says):
        branch_off(pico, tree, name, **options)


def test_a_negative_prompt_may_be_plain_text(pico, tree):
    grown = branch_off(pico, tree, "x", step=2, negative_prompt="green things")
    request = prepare_request(pico, PROMPT, negative_prompt="green things", with_sound=True, num_frames=5)
    assert torch.equal(grown["x"].inputs.request.neg_text_ids, request.neg_text_ids)
    assert torch.equal(grown["x"].inputs.request.text_ids, tree["root"].inputs.request.text_ids)


@pytest.mark.parametrize("grow", ["plant", "branch_off", "resume", "iter_resume"])
def test_after_running_out_of_memory_everything_is_let_go(pico, tree, prepared, monkeypatch, grow):
    held = []

    def fill(transformer, inputs, state, *, stop=None):
        held.extend(map(weakref.ref, (state, inputs.cond) if grow == "branch_off" else (state,)))  # else the caller has inputs
        raise torch.OutOfMemoryError("CUDA out of memory")

    ways = {
        "plant": lambda: plant(pico, *prepared, stop=3),
        "branch_off": lambda: branch_off(pico, tree, "x", step=1, prompt="a blue star falls"),
        "resume": lambda: resume(pico, tree, "strong"),
        "iter_resume": lambda: list(iter_resume(pico, tree, "strong")),
    }
    with monkeypatch.context() as patched:
        patched.setattr("cosmos3_lab.tree.denoise", fill)
        with pytest.raises(OutOfMemoryError, match="out of memory on the CPU: 96x96x5 with sound needs about") as caught:
            ways[grow]()
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held), f"{caught.value!r}, which is still here, keeps them"
    assert resume(pico, tree, "strong")["strong"].finished


def test_a_tree_that_cannot_be_encoded_lets_everything_go(pico, tree, tmp_path, monkeypatch):
    save_tree(tree, tmp_path)
    with monkeypatch.context() as patched:
        held = only_one_prompt_fits(patched)
        with pytest.raises(OutOfMemoryError, match="out of memory on the CPU: 96x96x5 with sound needs about") as caught:
            load_tree(tmp_path, pico)
    gc.collect()
    assert [ref() for ref in held] == [None], f"{caught.value!r}, which is still here, keeps it"
    assert load_tree(tmp_path, pico).names == tree.names


def test_notes_name_settings_in_words(pico, prepared):
    grown = plant(pico, *prepared, stop=1)
    changes = {"guidance_scale": lambda step, sigma: 2.0, "solver": Solver("unipc", 3), "preset": prepared[0].preset}
    grown = branch_off(pico, grown, "x", step=1, stop=2, **changes)
    assert grown["x"].note == "guidance_scale: a function of (step, sigma), solver: UniPC 3, preset: native"


def test_trees_are_told_in_words(tree):
    assert repr(tree).splitlines()[2].startswith("    Branch('zeros' from 'green' at step 2, latents edited, finished")


# ----------------------------------------------------------------------------------------------------------- figure


def test_the_picture_has_a_lane_for_each_branch_and_a_preview_at_forks_and_ends(pico, tree):
    from matplotlib.offsetbox import AnnotationBbox

    ax = plot_tree(tree, latent_preview(pico))
    assert isinstance(ax, LabAxes)
    boxes = [artist for artist in ax.get_children() if isinstance(artist, AnnotationBbox)]
    # the root's states 1 and 2 and green's 2 are left (after a restart, green's step 2 has one x0), and four ends
    assert len(boxes) == 3 + 4
    assert [branch.name for branch in in_lanes(tree)] == ["root", "strong", "green", "zeros"]
    assert {text.get_text().split("  ")[0] for text in ax.texts} >= set(tree.names)
    ax.figure.png()


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_trees_of_every_solver_show_their_x0(pico, prepared, solver):
    from matplotlib.offsetbox import AnnotationBbox

    inputs, state = prepare_denoise(pico, prepared[0].request, solver=solver)
    steps = list(denoise(pico.transformer, inputs, state))
    grown = branch_off(pico, plant(pico, inputs, state), "x", step=2, stop=3, guidance_scale=1.0)
    for step in (1, 2, 3):
        x0 = x0_of(grown["root"].at(step))
        assert torch.equal(x0.video, steps[step - 1][1].x0.video)
        assert torch.equal(x0.sound, steps[step - 1][1].x0.sound)
    ax = plot_tree(grown, latent_preview(pico))
    assert len([artist for artist in ax.get_children() if isinstance(artist, AnnotationBbox)]) == 1 + 2  # fork, two ends


def test_steps_of_another_schedule_stand_at_their_noise_level(pico, tree):
    sigmas = tree["root"].inputs.schedule.sigmas
    longer = Schedule(
        torch.cat([sigmas[:2], sigmas[1:].lerp(sigmas[:-1], 0.5)[1:-1], sigmas[-1:]]),
        torch.cat([tree["root"].inputs.schedule.timesteps[:2], torch.tensor([700, 500])]),
    )
    grown = branch_off(pico, tree, "other", step=1, schedule=longer)
    lines = [line for line in plot_tree(grown, latent_preview(pico)).lines if line.get_linestyle() in ("None", "")]
    assert list(lines[-1].get_xdata()[[0, -1]]) == pytest.approx([1, STEPS])
    assert lines[-1].get_xdata()[1] == pytest.approx(1.5, abs=0.2)


def test_the_latest_x0_is_in_the_state(tree):
    assert x0_of(tree["root"].at(0)) is None
    assert torch.equal(x0_of(tree["root"].at(4)).video, tree["root"].at(4).video.x0_history[0])


# ------------------------------------------------------------------------------------------------------------- disk


def test_a_tree_comes_back_as_it_was(pico, tree, tmp_path):
    again = load_tree(save_tree(tree, tmp_path / "tree"), pico)
    assert equal(tensors(tree), tensors(again))
    assert repr(again) == repr(tree)
    assert [r.rms for b in again.branches for r in b.records] == [r.rms for b in tree.branches for r in b.records]
    for old, new in zip(tree.branches, again.branches, strict=True):
        assert all(torch.equal(x.k, y.k) for x, y in zip(old.inputs.cond.cached_kv, new.inputs.cond.cached_kv, strict=True))


RESUME = """
import sys
from safetensors.torch import save_file
from cosmos3_lab import load_cosmos3
from cosmos3_lab.tree import branch_off, resume
from cosmos3_lab.tree_files import load_tree
models = load_cosmos3("pico", device="cpu")
tree = resume(models, load_tree(sys.argv[1], models), "strong")
tree = branch_off(models, tree, "late", parent="green", step=3, guidance_scale=1.0)
results = {name: tree[name].result for name in ("strong", "late")}
save_file({f"{n}.{m}": getattr(r, m).contiguous() for n, r in results.items() for m in ("video", "sound")}, sys.argv[2])
"""


def test_another_process_goes_on_bit_for_bit(pico, tree, tmp_path):
    save_tree(tree, tmp_path / "tree")
    command = [sys.executable, "-c", RESUME, str(tmp_path / "tree"), str(tmp_path / "results.safetensors")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    there = load_file(tmp_path / "results.safetensors")
    here = branch_off(pico, resume(pico, tree, "strong"), "late", parent="green", step=3, guidance_scale=1.0)
    for name in ("strong", "late"):
        assert torch.equal(there[f"{name}.video"], here[name].result.video)
        assert torch.equal(there[f"{name}.sound"], here[name].result.sound)


def test_saving_again_writes_only_what_is_new_and_removes_what_is_gone(pico, tree, tmp_path):
    save_tree(tree, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    grown = prune(resume(pico, tree, "strong"), "green")
    save_tree(grown, tmp_path)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert {path for path, time in after.items() if path in times and time != times[path]} == set()
    assert len(set(after) - set(times)) == 1  # the last state of the resumed branch
    assert len(list(tmp_path.glob("branches/*"))) == 1  # both have the same tokens and sigmas
    assert load_tree(tmp_path, pico).names == ("root", "strong")


def test_a_crash_while_saving_leaves_the_old_tree(pico, tree, tmp_path, monkeypatch):
    save_tree(prune(tree, "green"), tmp_path)
    written = []

    def save_two(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(save_state(*arguments))

    monkeypatch.setattr("cosmos3_lab.tree_files.save_state", save_two)
    with pytest.raises(KeyboardInterrupt):
        save_tree(tree, tmp_path)
    assert load_tree(tmp_path, pico).names == ("root", "strong")


def test_texts_are_encoded_once_when_a_tree_is_opened(pico, tree, tmp_path, monkeypatch):
    import cosmos3_lab.reuse

    save_tree(tree, tmp_path)
    seen = []
    encode = cosmos3_lab.reuse.encode_prompts
    monkeypatch.setattr("cosmos3_lab.reuse.encode_prompts", lambda *a: seen.append(a) or encode(*a))
    load_tree(tmp_path, pico)
    assert len(seen) == 2  # the root's prompt and the other one


def damage(folder, how):
    path = folder / "tree.json"
    values = json.loads(path.read_text())
    how(values, folder)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda v, f: v.update(format="other"), "is not a cosmos3_lab.tree file"),
        (lambda v, f: v.update(version=99), "has version 99"),
        (lambda v, f: v.update(checkpoint="other"), "another checkpoint"),
        (lambda v, f: v.update(branches=[]), "holds no branches"),
        (lambda v, f: v.pop("branches"), "is damaged: KeyError"),
        (lambda v, f: v["branches"][1].update(parent="nobody"), "'green' does not fit"),
        (lambda v, f: v["branches"][1].update(name="root"), "'root' does not fit"),
        (lambda v, f: v["branches"][0]["states"].reverse(), "'root' does not fit"),
        (lambda v, f: v["branches"][0]["states"].append("../../etc/passwd"), "it names the file"),
        (lambda v, f: v["branches"][0].update(inputs={"record": "Popen", "fields": {}}), "got a record 'Popen', expected one of"),
        (lambda v, f: (f / v["branches"][0]["states"][0]).write_bytes(b"x"), "not a readable state file"),
        (lambda v, f: (f / v["branches"][0]["settings"]).unlink(), "missing or damaged"),
        (lambda v, f: v["branches"][0].update(states=v["branches"][1]["states"]), "belongs to another run: prompt"),
    ],
)
def test_damage_is_one_clear_error(pico, tree, tmp_path, how, says):
    save_tree(tree, tmp_path)
    damage(tmp_path, how)
    with pytest.raises(ValueError, match=says):
        load_tree(tmp_path, pico)


@pytest.mark.parametrize("depth", [400, 600, 200_000])
def test_deep_files_are_one_clear_error(pico, tree, tmp_path, depth):
    save_tree(tree, tmp_path)
    path = tmp_path / "tree.json"
    deep = path.read_text().replace('"fields": {', '"fields": {"deep": ' + "[" * depth + "]" * depth + ", ", 1)
    path.write_text("[" * depth if depth > 1000 else deep)
    with pytest.raises(ValueError, match=r"tree\.json is|got a .* with the fields"):
        load_tree(tmp_path, pico)


def test_no_tree_at_all(pico, tmp_path):
    with pytest.raises(ValueError, match="is not a readable cosmos3_lab.tree file"):
        load_tree(tmp_path, pico)


# ------------------------------------------------------------------------------------------------------------ plain


def test_records_go_to_json_and_back(prepared):
    request, found = prepared[0].request, {}
    plain = json.loads(json.dumps(to_plain({"request": request, "list": [1, (2.5, None, "a")]}, found)))
    again = from_plain(plain, found, records=(type(request), type(request.preset)))
    assert again["list"] == [1, (2.5, None, "a")]
    assert again["request"].preset == request.preset
    assert torch.equal(again["request"].text_ids, request.text_ids)
    assert again["request"].video_shape == request.video_shape


def test_functions_are_not_written():
    with pytest.raises(ValueError, match=r"got a function at value\.w, expected what a file can hold"):
        to_plain({"w": lambda step, sigma: 1.0}, {})


@pytest.mark.parametrize(
    "plain",
    [{"tensor": "missing"}, {"other": 1}, {"record": "Schedule", "fields": {"wrong": 1}}, {"record": "Path", "fields": {}}],
)
def test_strange_values_are_refused(plain):
    with pytest.raises(ValueError, match="got"):
        from_plain(plain, {}, records=(Schedule,))


def test_the_text_is_encoded_once(pico, prepared, monkeypatch):
    import cosmos3_lab.reuse

    seen = []
    whole = cosmos3_lab.reuse.encode_prompts
    monkeypatch.setattr("cosmos3_lab.reuse.encode_prompts", lambda *a: seen.append(a) or whole(*a))
    encode, request = encode_once(), prepared[0].request
    from dataclasses import replace

    without, _ = prepare_denoise(pico, replace(request, guidance_scale=1.0), encode=encode)
    with_both, _ = prepare_denoise(pico, request, encode=encode)
    again, _ = prepare_denoise(pico, replace(request, seed=7, guidance_scale=2.0), schedule=flow_schedule(STEPS), encode=encode)
    plain, _ = prepare_denoise(pico, replace(request, guidance_scale=1.0), encode=encode)
    assert len(seen) == 2  # the prompt alone, then with the negative prompt that came to be needed
    assert without.uncond is None
    assert plain.uncond is None
    assert again.cond is with_both.cond
    assert all(torch.equal(x.v, y.v) for x, y in zip(again.cond.cached_kv, prepared[0].cond.cached_kv, strict=True))
