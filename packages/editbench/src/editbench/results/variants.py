"""What tells trials apart that would otherwise look the same."""

from collections import defaultdict
from collections.abc import Mapping
from operator import attrgetter

from editbench.results.manifest import TrialDescription

_IDENTITY = attrgetter("editor", "model", "dataset", "relations", "n_edits", "batch_size", "seed")


def find_variants(trials: Mapping[str, TrialDescription]) -> dict[str, str]:
    """What tells trials apart that look the same: of one editor, model, dataset, size and seed.

    For each trial the fields in which its group differs, as ``field=value``, comma-separated; empty
    for a trial that is alone.
    """
    groups: defaultdict[tuple[object, ...], dict[str, TrialDescription]] = defaultdict(dict)
    for trial, description in trials.items():
        groups[_IDENTITY(description)][trial] = description
    return {
        trial: ", ".join(f"{field}={value}" for field, value in differing.items())
        for group in groups.values()
        for trial, differing in find_differences(group).items()
    }


def find_differences(trials: Mapping[str, TrialDescription]) -> dict[str, dict[str, str]]:
    """For each trial the fields that are not the same in all of them, with its values as JSON.

    Fields of the configuration stand without their prefix.
    """
    flat = {trial: description.flat() for trial, description in trials.items()}
    fields = dict.fromkeys(field for content in flat.values() for field in content)
    differing = [each for each in fields if len({own.get(each) for own in flat.values()}) > 1]
    return {
        trial: {field.removeprefix("config."): content.get(field, "unset") for field in differing}
        for trial, content in flat.items()
    }
