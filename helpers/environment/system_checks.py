"""Checks of main memory, disk, paths and model files."""

import re

from helpers.display import GIB
from helpers.environment import fixes
from helpers.environment.facts import Machine, Place
from helpers.environment.model_files import GPT2
from helpers.environment.rules import Finding, fail, ok, rule, warn

CHECKPOINT_BYTES = 1_600_000_000  # GPT-2's weights and AdamW's two averages in float32, and a little more
CHECKPOINTS_KEPT = 2  # the default of save_total_limit; one more is written before the oldest is deleted
DOWNLOAD_BYTES = 600_000_000  # GPT-2's files, in the Hub's cache
_VARIABLES = {"runs": "COURSE_RUNS", "cache": "HF_HOME"}  # each moves a place
_LONGEST_ENDING = {  # characters that libraries append to the path of a place
    "runs": len("/some-run-of-mine/checkpoints/checkpoint-100000/model.safetensors"),
    "cache": len(f"/hub/models--{GPT2.replace('/', '--')}/snapshots/") + 40 + len("/tokenizer_config.json.incomplete"),
}
_LONGEST_PATH = 200  # Windows stops at 260
_SHORT_PATHS = {"runs": "C:\\runs", "cache": "C:\\hf"}


@rule("If main memory runs out, the kernel dies without a message, most often while text is turned into tokens.")
def ram_available(machine: Machine) -> Finding:
    """Judge the available memory: GPT-2, for a GPU, needs more than the pocket model, for a CPU."""
    low, lowest = (8 * GIB, 4 * GIB) if machine.has_gpu else (4 * GIB, 2 * GIB)
    memory = machine.memory
    reading = f"{memory.available_bytes / GIB:.1f} of {memory.total_bytes / GIB:.1f} GiB available"
    if memory.available_bytes < lowest:
        return fail(reading, fixes.more_memory(machine))
    return warn(reading, fixes.more_memory(machine)) if memory.available_bytes < low else ok(reading)


@rule("A full disk stops training at its next checkpoint: three of GPT-2's take 4.8 GB.")
def disk_free(machine: Machine) -> Finding:
    """Compare what a run writes with the space on each disk; without a card, a run of the pocket model."""
    locked = [place for place in machine.storage.places if not place.writable]
    if any(place.role != "cache" or machine.has_gpu for place in locked):
        return fail(f"cannot be written: {_list_places(locked)}", _advise_moving(machine, locked[0]))
    short = _shortages(machine, gpt2=machine.has_gpu)
    if short:
        return fail("; ".join(short), _advise_freeing_space(machine))
    later = _shortages(machine, gpt2=True)
    if later:
        return warn(f"enough for the pocket model; for GPT-2: {'; '.join(later)}", _advise_freeing_space(machine))
    if locked:
        return warn(f"cannot be written: {_list_places(locked)}", _advise_moving(machine, locked[0]))
    return ok(", ".join(f"{place.free_bytes / 1e9:.0f} GB free for {place.role}" for place in machine.storage.places))


def _shortages(machine: Machine, *, gpt2: bool) -> list[str]:
    """Return a phrase for each disk that has too little space; places on one disk share it."""
    files = machine.files
    # a checkpoint of the pocket model also has its weights, two averages as large, and a little more
    needs = {
        "runs": (CHECKPOINTS_KEPT + 1) * (CHECKPOINT_BYTES if gpt2 else 4 * files.pocket.bytes),
        "cache": DOWNLOAD_BYTES if gpt2 and files.gpt2 is None else 0,
    }
    phrases = []
    for disk in dict.fromkeys(place.disk for place in machine.storage.places):
        places = [place for place in machine.storage.places if place.disk == disk]
        need, free = sum(needs[place.role] for place in places), min(place.free_bytes for place in places)
        if free < need:
            phrases.append(f"{free / 1e9:.1f} GB free at {places[0].path}, {need / 1e9:.1f} GB needed")
    return phrases


def _list_places(places: list[Place]) -> str:
    return ", ".join(f"{place.role} ({place.path})" for place in places)


def _advise_moving(machine: Machine, place: Place) -> str:
    return fixes.set_variables(machine, **{_VARIABLES[place.role]: "<a folder you may write to>"})


def _advise_freeing_space(machine: Machine) -> str:
    elsewhere = fixes.set_variables(machine, COURSE_RUNS="<a folder on a larger disk>")
    return f"Free some space, or write elsewhere: {elsewhere}"


@rule("Long paths, synchronised folders and Windows disks under WSL2 make files fail or slow them down.")
def paths(machine: Machine) -> Finding:
    """Warn about a missing home folder, paths too long for Windows, OneDrive, and /mnt/c under WSL2."""
    storage, kind = machine.storage, machine.platform.kind
    own_cache = _SHORT_PATHS["cache"] if kind == "Windows" else "<a folder of yours>"
    if not any(place.role == "cache" for place in storage.places):
        return warn("there is no home folder for the Hub's cache", fixes.set_variables(machine, HF_HOME=own_cache))
    # WSL reaches the disks of Windows through a network file system, at a fraction of their speed
    folders = [storage.project, *(place.path for place in storage.places)]
    on_windows = [path for path in folders if re.match(r"/mnt/[^/](/|$)", path)]
    if kind in ("WSL2", "WSL1") and on_windows:
        line = "Move the project below your Linux home: cp -r . ~/course"
        return warn(f"{on_windows[0]} is a Windows disk: slow from here", line)
    if any("onedrive" in path.lower() for path in folders):
        runs = _SHORT_PATHS["runs"] if kind == "Windows" else "<a folder that is not synchronised>"
        elsewhere = fixes.set_variables(machine, COURSE_RUNS=runs, HF_HOME=own_cache)
        return warn("OneDrive would upload every checkpoint", elsewhere)
    longest, deepest = max((len(place.path) + _LONGEST_ENDING[place.role], place.role) for place in storage.places)
    if kind == "Windows" and longest > _LONGEST_PATH and not storage.long_paths:
        reading = f"paths of {longest} characters, and Windows' long paths are off"
        shorter = fixes.set_variables(machine, **{_VARIABLES[deepest]: _SHORT_PATHS[deepest]})
        return warn(reading, f"{shorter} Or enable long paths: {fixes.LONG_PATHS}")
    return ok(f"longest planned path: {longest} characters")


@rule("A GPT-2 without its vocabulary still loads, with one token, and then trains on nothing.")
def tokenizer_and_model_files(machine: Machine) -> Finding:
    """Fail for an incomplete shipped model, and on a GPU for an incomplete GPT-2; a missing GPT-2 is not a problem."""
    files = machine.files
    if files.pocket.problems:
        return fail(f"pocket: {', '.join(files.pocket.problems)}", "git checkout -- helpers/assets/pocket")
    reading = f"pocket: {files.pocket.tokens:,} tokens, {files.pocket.positions} positions"
    parts = "allow_patterns=['*.json', '*.txt', '*.safetensors']"  # the other files repeat the weights in other formats
    get = f"from huggingface_hub import snapshot_download; snapshot_download('{GPT2}', {parts})"
    fetch = f'{fixes.python_command(machine)} -c "{get}"'
    if files.gpt2 is None and files.offline and machine.has_gpu:
        line = f"{fixes.unset(machine, *files.offline)} To download it now: {fetch}"
        return warn(f"{reading}; GPT-2 is not downloaded, and downloads are off", line)
    if files.gpt2 is None:
        return ok(f"{reading}; GPT-2 is not downloaded yet")
    if files.gpt2.problems:
        reading = f"{reading}; gpt2: {', '.join(files.gpt2.problems)}"
        folder = files.gpt2.path.split("snapshots")[0].rstrip("/\\")
        remove = f'Remove-Item -Recurse "{folder}"' if machine.platform.kind == "Windows" else f"rm -r '{folder}'"
        line = f"{remove} ; {fetch}"
        return fail(reading, line) if machine.has_gpu else warn(reading, line)
    return ok(f"{reading}; gpt2: {files.gpt2.tokens:,} tokens, {files.gpt2.positions} positions")
