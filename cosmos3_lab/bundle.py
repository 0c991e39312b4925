"""The folder of one run. It is enough to go on with the run after a crash, and to repeat it later.

    run_001/manifest.json         what was asked and what it is (`manifest.py`), and how far it came: `status`
            noise.safetensors     initial noise, where it was given in place of a seed
            state.safetensors     the solver's state, replaced every few steps            while denoising
            latents.safetensors   the last state without its history: clean latents       once denoised
            video.mp4, contact_sheet.png                                                  once decoded

The folder is made under a hidden name and renamed, so it never lacks its manifest; so is every file in it. The manifest is last
at every change of status, so a crash at any moment leaves the stage before, whole. Hidden files that a killed process left are
removed when the run goes on.

    status      a crash leaves                                      going on
    denoising   the state of the last save                          does the steps after it
    decoding    the latents                                         decodes
    finished    everything                                          there is nothing to do

No name in it comes from a prompt.

Read next: `run.py`, which fills it.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EEXIST, ENOTDIR, ENOTEMPTY
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from cosmos3_lab.files import check_writable, replacing
from cosmos3_lab.latents import Latents
from cosmos3_lab.untrusted import CheckpointError, has_file, parse_object, read_text

VERSION = 1
FORMAT = "cosmos3_lab.run"
LARGEST_MANIFEST = 2**24  # bytes; token ids of the longest prompts are far below
Status = Literal["denoising", "decoding", "finished"]
FIELDS = {  # of a manifest, as far as they are relied on without another look
    "private": bool,
    "video": str,
    "texts": dict | None,
    "effective": dict,
    "request": dict,
    "solver": dict,
    "machine": dict | None,
    "hashes": dict,
    "timings": dict,
}


@dataclass(frozen=True)
class Bundle:
    """The files of a run.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def manifest(self) -> Path:
        """JSON; see `read_manifest`."""
        return self.path / "manifest.json"

    @property
    def noise(self) -> Path:
        """Initial noise that was given; see `read_noise`."""
        return self.path / "noise.safetensors"

    @property
    def state(self) -> Path:
        """For `load_state`, until the run is denoised."""
        return self.path / "state.safetensors"

    @property
    def latents(self) -> Path:
        """For `load_state`, once the run is denoised."""
        return self.path / "latents.safetensors"

    @property
    def contact_sheet(self) -> Path:
        """Some frames and the waveform as a PNG."""
        return self.path / "contact_sheet.png"

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest as a whole.

        Args:
            manifest: plain JSON values.

        Raises:
            OSError: it cannot be written.
        """
        with replacing(self.manifest) as temporary:
            temporary.write_text(_json(manifest), encoding="utf-8")

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, with its format and status checked.

        Raises:
            ValueError: this is not the folder of a run, or one that a later version made.
        """
        try:
            if not has_file(self.manifest):
                raise ValueError(f"{self.path} is not the folder of a run: it has no {self.manifest.name}")
            manifest = parse_object(read_text(self.manifest, most=LARGEST_MANIFEST), f"{self.manifest}")
        except CheckpointError as error:
            raise ValueError(str(error)) from error
        version = manifest.get("version") if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None
        if type(version) is not int or version < 1:
            raise ValueError(f"{self.manifest} is not the manifest of a run")
        if version > VERSION:
            raise ValueError(f"{self.manifest} has version {version}, and this package reads up to {VERSION}; update it")
        if manifest.get("status") not in get_args(Status):
            raise ValueError(f"{self.manifest} has status {manifest.get('status')!r}, expected {' or '.join(get_args(Status))}")
        for name, kind in FIELDS.items():
            if not isinstance(manifest.get(name), kind):
                raise ValueError(f"{self.manifest} has {name} {manifest.get(name)!r:.80}, expected {kind}")
        if not all(isinstance(seconds, int | float) for seconds in manifest["timings"].values()):
            raise ValueError(f"{self.manifest} has timings that are not numbers")
        check_video_name(manifest["video"])
        return manifest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working on the same run; the system lets go when this one dies.

        Raises:
            ValueError: another process has it.
        """
        folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"{self.path} is being worked on by another process; wait for it, or end it") from error
            except OSError:
                pass  # a network's file system without locks; two at work there would write the same bits
            yield
        finally:
            os.close(folder)

    def remove_leftovers(self) -> None:
        """Delete what a killed process was writing."""
        for file in self.path.glob(".*.part.*"):
            if not file.is_dir():
                file.unlink(missing_ok=True)


def create_bundle(out: str | Path, manifest: Mapping[str, Any], *, noise: Latents | None = None) -> Bundle:
    """A new folder `run_001`, `run_002`, ... in `out`, the first that is free.

    Args:
        out: may not exist yet.
        manifest: to begin with.
        noise: to keep in it.

    Raises:
        OSError: it cannot be written; nothing is left then.
    """
    out = Path(out)
    check_writable(out)
    fresh = Bundle(out / f".run.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        fresh.path.mkdir()
        fresh.write_manifest(manifest)
        if noise is not None:
            write_noise(fresh.noise, noise)
        return Bundle(_rename_to_first_free(fresh.path, out))
    finally:
        shutil.rmtree(fresh.path, ignore_errors=True)  # there only after an error


def _rename_to_first_free(fresh: Path, out: Path) -> Path:
    for number in count(1):
        path = out / f"run_{number:03}"
        if path.exists() or path.is_symlink():
            continue
        try:
            return fresh.rename(path)
        except OSError as error:  # another run was quicker: its folder is there, and not empty
            if error.errno not in (EEXIST, ENOTEMPTY, ENOTDIR):
                raise
    raise AssertionError("count() ended")


def write_noise(path: Path, noise: Latents) -> None:
    """Keep noise that no seed can bring back.

    Args:
        path: of the file.
        noise: as given.
    """
    from safetensors.torch import save

    tensors = {"video": noise.video, "sound": noise.sound}
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items() if x is not None}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors))


def read_noise(path: Path) -> Latents | None:
    """What `write_noise` wrote, None where there is no such file.

    Args:
        path: of the file.

    Raises:
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        return Latents(tensors["video"], tensors.get("sound"))
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} holds no noise: {error}") from error


def check_video_name(name: str) -> str:
    """The name, if it is an mp4's and stays in its folder.

    Args:
        name: to check.

    Raises:
        ValueError: it does not.
    """
    if Path(name).suffix != ".mp4" or Path(name).name != name or "\0" in name or name.startswith("."):
        raise ValueError(f"got name {name!r}, expected a file name that ends in .mp4, without a folder")
    return name


def _json(manifest: Mapping[str, Any]) -> str:
    """Indented, with lists of numbers on one line."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    # No string has a line break in it, so this only joins lines of JSON's own.
    joined = re.sub(r"\[\n\s*([^\[\]{}\"]*?)\n\s*\]", lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]", text)
    return joined + "\n"
