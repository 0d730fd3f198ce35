"""The power goes at any call that changes a file: there is always a whole checkpoint, and it is the old or the new one.

After a kill the system still writes what it was given; after a power cut contents that were not forced may be gone
("contents"), and names as well ("names"). Each is tried at every call, and halfway through every write.
"""

from pathlib import Path
from typing import Any

import pytest
from faults.runs import VARIANTS, Call, Lab, saved, strays, thinned, whole_checkpoints

CUT = 137
LOSSES = ("nothing", "contents", "names")
RESULTS = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "model": ("config.json", "model.safetensors"),
}


def cuts(lab: Lab, variant: str) -> list[dict[str, Any]]:
    """Every way to cut the run's calls short."""
    return [
        {"number": number, "half": half, "lose": lose}
        for number, call in enumerate(lab.file_calls(variant), start=1)
        for half in ((False, True) if call.size > 1 else (False,))
        for lose in LOSSES
    ]


def cut_and_resumed(lab: Lab, variant: str, cut: dict[str, Any], *flags: str) -> None:
    """Cut the power; look at what the disk has; go on."""
    done = saved(lab.file_calls(variant)[: cut["number"] - 1])
    with lab.scratch() as output:
        ended = lab.run(variant, output, *flags, faults={"cut": cut | {"root": str(output.parent)}})
        assert ended.code == CUT, ended.text
        there = whole_checkpoints(output)
        assert max(there, default=0) in (done, done + 1), f"{there} after {done} were saved, cut at {cut}"
        for name, (vouches, weights) in RESULTS.items():
            if (output / name / vouches).exists():
                wanted = (lab.whole(variant) / name / weights).read_bytes()
                assert (output / name / weights).read_bytes() == wanted, cut
        lab.ends_as_undisturbed(variant, output, *flags)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_power_cut_at_some_calls_leaves_the_old_or_the_new_checkpoint(lab, variant, count_faults):
    for cut in thinned(cuts(lab, variant), 3, seed=1):
        cut_and_resumed(lab, variant, cut)
        count_faults(f"power cut, {cut['lose']} lost")


@pytest.mark.faults
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
def test_a_power_cut_at_any_call_leaves_the_old_or_the_new_checkpoint(lab, variant, half, count_faults):
    """From the first metrics to the end of the second save, and from the last, which drops an old one, to the end."""
    calls = lab.file_calls(variant)
    first = next(n for n, call in enumerate(calls, start=1) if "metrics.jsonl" in call.path)
    named = [n for n, call in enumerate(calls, start=1) if call.name == "replace" and "/step-" in call.path]
    for number in (*range(first, named[1] + 3), *range(named[-1] - 1, len(calls) + 1)):
        lose = LOSSES[number % 3]
        if not half or calls[number - 1].size > 1:
            cut_and_resumed(lab, variant, {"number": number, "half": half, "lose": lose})
            count_faults(f"power cut, {lose} lost")


@pytest.mark.faults
@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_power_cut_at_many_calls_of_the_whole_run_leaves_a_whole_checkpoint(lab, variant, lose, count_faults):
    """Calls of the whole run by chance, its loading and its trial save included."""
    every = [cut for cut in cuts(lab, variant) if cut["lose"] == lose]
    for cut in thinned(every, 10, seed=LOSSES.index(lose)):
        cut_and_resumed(lab, variant, cut)
        count_faults(f"power cut, {lose} lost")


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_are_forced_to_the_disk_before_they_get_their_name_and_names_after(lab, variant, count_faults):
    """write < fsync(file) < rename < fsync(directory), of every file of every checkpoint and result."""
    calls = lab.file_calls(variant)
    renamed = [n for n, call in enumerate(calls) if call.name == "replace" and ".saving-" not in Path(call.path).name]
    assert len(renamed) >= lab.n_steps(variant) + 3
    for place in renamed:
        target = Path(calls[place].path)
        drafts = {call.path for call in calls[:place] if call.name == "open" and named_as(Path(call.path), target)}
        assert drafts, target
        for draft in drafts:
            before = calls[:place]
            written = max(n for n, call in enumerate(before) if call.name in ("open", "write") and call.path == draft)
            assert Call("fsync", draft, 0) in before[written:], draft
        assert Call("fsync", str(target.parent), 0) in calls[place:], target
        count_faults("order of write, fsync, rename, fsync checked", len(drafts))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_ended_well_needs_no_power_any_more(lab, variant, count_faults):
    """What it said it saved is on the disk, contents and names, when it ends."""
    with lab.scratch() as output:
        assert lab.run(variant, output, faults={"power_off": {"root": str(output.parent)}}).code == 0
        lab.is_as_undisturbed(variant, output, tidy=False)  # an empty draft may be back
        count_faults("power cut after the end, names lost")


def named_as(draft: Path, target: Path) -> bool:
    """Whether a file under a draft's name becomes this file, or a part of this directory."""
    in_folder = draft.parent.name == f".saving-{target.name}" and draft.parent.parent == target.parent
    staged = (
        draft.name == target.name and draft.parent.name.startswith(".saving-") and draft.parent.parent == target.parent
    )
    alone = draft.name.startswith(f".saving-{target.name}.") and draft.parent == target.parent
    return in_folder or staged or alone


@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
def test_nothing_lies_about_after_a_cut_save_and_the_next_run(lab, variant, count_faults):
    """Cut in the middle of the third save, whose draft the next run removes."""
    calls = lab.file_calls(variant)
    drafted = [n for n, call in enumerate(calls, start=1) if ".saving-step-00000003/" in call.path]
    with lab.scratch() as output:
        cut = {"root": str(output.parent), "number": drafted[len(drafted) // 2]}
        assert lab.run(variant, output, faults={"cut": cut}).code == CUT
        assert [Path(path).name for path in strays(output)] == [".saving-step-00000003"]
        lab.ends_as_undisturbed(variant, output)
        count_faults("power cut, nothing lost")
