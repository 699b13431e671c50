"""What an editor is: requests and a model go in, an edit comes out."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from editbench.costs.stage import ExpectedCache, StageCost
from editbench.datasets.corpus import Corpus
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.dialect import UNUSED, Dialect
from editbench.editors.search_space import SearchSpace
from editbench.editors.stream import Carried, DrivenStream, Stream, TotalStream, write_batches
from editbench.edits.edit import Edit
from editbench.errors import ConfigError, UnknownNameError
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.progress import Progress, report_nothing
from editbench.requests import EditCase, EditRequest
from editbench.second_moments.npz_files import hash_moments

if TYPE_CHECKING:
    from editbench.editors.targets.cache import TargetLedger

_REFERENCE_NAME = re.compile(r"\((\w+)\)$")
"""What the authors' code calls a field stands at the end of its description."""


class EditorConfig(BaseModel):
    """Base of an editor's hyperparameters: immutable, and no field is ignored silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dialect: ClassVar[Dialect | None] = None
    """What other tools call the fields, where their files can be read."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Values under a name, such as ``reference`` for what the authors' code does otherwise."""

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Validate `values`.

        Args:
            values: Field names and values.
            source: Where they come from, for the message: a file or an option.

        Raises:
            ConfigError: A field is unknown or a value is invalid; the message names the field.
        """
        for name in values:
            if name not in cls.model_fields:
                raise ConfigError(f"{source}: {cls.unknown_field(str(name))}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "configuration"
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(
                f"{source}: field '{place}': {message}, got {first['input']!r}."
            ) from error

    @classmethod
    def preset(cls, name: str, **values: Any) -> Self:
        """The values of one of `presets`, and others.

        Args:
            name: The preset's.
            values: Fields that it does not have, or that win over it.

        Raises:
            UnknownNameError: There is no such preset.
            ConfigError: A value is invalid.
        """
        if name not in cls.presets:
            raise UnknownNameError("preset", name, cls.presets)
        return cls.parse({**cls.presets[name], **values}, f"preset '{name}'")

    @classmethod
    def writing_to(cls, layers: Sequence[int]) -> Mapping[str, Any]:
        """The fields that make an editor write to critical layers; none if it has no such layers.

        Args:
            layers: The layers, ascending. An editor that writes to one takes the last of them.
        """
        return {"critical_layers": list(layers)} if "critical_layers" in cls.model_fields else {}

    @classmethod
    def unknown_field(cls, name: str) -> UnknownNameError:
        """An error about a field that is not there; it knows the names of the authors' code."""
        elsewhere = {"fact_token": "the token is always the subject's last one", **UNUSED}
        if "critical_layers" in cls.model_fields:
            elsewhere["layer"] = "critical_layers"
        for field, info in cls.model_fields.items():
            if found := _REFERENCE_NAME.search(info.description or ""):
                elsewhere[found[1]] = field
        return UnknownNameError("field", name, cls.model_fields, elsewhere=elsewhere)

    def updated(self, values: Mapping[str, Any], source: str) -> Self:
        """The same configuration with some fields replaced, validated again."""
        return self.parse({**self.model_dump(), **values}, source)

    def updated_from_file(self, values: Mapping[str, Any], source: str) -> Self:
        """The same for the fields of a configuration file, which may imply more than it names."""
        return self.updated(values, source)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a user may hand to an editor besides model and requests.

    Attributes:
        second_moments: A file of second moments, or a folder of memit's, to use instead of
            collecting them.
        context_prefixes: Groups of prefixes to use instead of sampling them.
        corpus: Ordinary text, to collect second moments from where no file is given.
    """

    second_moments: Path | None = None
    context_prefixes: ContextPrefixes | None = None
    corpus: Corpus | None = None

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the inputs hold, whatever their files are called: part of a trial's address.

        Raises:
            SecondMomentError: The file of second moments cannot be read.
        """
        content: dict[str, Any] = {}
        if self.second_moments is not None:
            content["second_moments"] = hash_moments(self.second_moments)
        if self.context_prefixes is not None:
            content["context_prefixes"] = [list(group) for group in self.context_prefixes.groups]
        if self.corpus is not None:
            content["corpus"] = {"name": self.corpus.name, "fingerprint": self.corpus.fingerprint}
        return content

    def resources(
        self,
        seed: int,
        cache: Path | None = None,
        report_progress: Progress = report_nothing,
        targets: "TargetLedger | None" = None,
    ) -> "Resources":
        """All that an editor may use: the inputs, and what surrounds them."""
        given = {field.name: getattr(self, field.name) for field in fields(Inputs)}
        return Resources(seed, cache, report_progress, targets, **given)


@dataclass(frozen=True)
class Resources(Inputs):
    """What surrounds an edit: all that an editor may use besides the model and the requests.

    Attributes:
        seed: Source of every random choice.
        cache: Folder for results worth keeping between runs; None keeps nothing.
        report_progress: Called as long work advances.
        targets: Target states that are known already, and those that an edit has used.
    """

    seed: int
    cache: Path | None = None
    report_progress: Progress = report_nothing
    targets: "TargetLedger | None" = None


@dataclass(frozen=True, slots=True)
class Share:
    """One of the `n` parts that some work is divided into: number `index`, from 0."""

    index: int
    n: int


class Editor(ABC):
    """A method that changes what a model knows.

    Subclasses set `name` and `config_type` and implement `edit`.

    Attributes:
        name: What users call it.
        config_type: The type of its hyperparameters.
        good_for: What it is good for, in a few words, for ``editbench list editors``.
        citation: BibTeX of its paper, likewise.
        published_as: The editor whose published hyperparameters it starts from, if it is another.
        computes_nothing: Whether `edit` takes no time worth a plan.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[EditorConfig]] = EditorConfig
    good_for: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    published_as: ClassVar[str] = ""
    computes_nothing: ClassVar[bool] = False

    def __init__(self, config: EditorConfig) -> None:
        if not isinstance(config, self.config_type):
            raise ConfigError(
                f"editor '{self.name}': wrong configuration type, got {type(config).__name__}; "
                f"expected {self.config_type.__name__}."
            )
        self.config = config

    @classmethod
    def derive_defaults(cls, model: EditableModel) -> Mapping[str, Any]:
        """Hyperparameters that depend on the model's shape, where none were published for it."""
        return {}

    @classmethod
    def default_config(cls, model: EditableModel) -> tuple[EditorConfig, str]:
        """The hyperparameters to start from on this model, and a sentence on their origin."""
        spec, names = model.spec, (cls.name, cls.published_as)
        name = next((name for name in names if spec and name in spec.defaults), None)
        if spec is not None and name is not None:
            values, source = spec.defaults[name], f"defaults of '{model.name}'"
            origin = spec.source_of(name)
        elif values := cls.derive_defaults(model):
            source = "derived defaults"
            origin = (
                f"derived from {model.architecture.n_layers} layers and {model.d_key(0)} key "
                f"dimensions: none are published for '{model.name}', so tune them before you rely "
                "on the result"
            )
        else:
            source = origin = "the editor's general defaults"
        return cls.config_type.parse(values, source), origin

    @classmethod
    def search_space(cls, model: EditableModel, config: EditorConfig) -> SearchSpace:
        """What ``editbench tune`` tries on this model, by field; nothing by default.

        Args:
            model: The model.
            config: The hyperparameters that a search starts from.

        Raises:
            ConfigError: The editor is not tuned in this way; the message says in which.
        """
        return {}

    def describe_trained(self, model: EditableModel) -> str:
        """What the editor brings along that was trained, for the user to see; most bring nothing.

        It is said beside where the hyperparameters come from, before any work begins.
        """
        return ""

    def check_usable(self, model: EditableModel) -> None:  # noqa: B027  # most need nothing
        """Refuse a model that the editor cannot edit, before any work is done on it.

        Called before the first trial of a run. Override it where an editor needs more than the
        model: a trained network, for instance.

        Raises:
            EditError: What is missing, and how to get it.
        """

    def needs_second_moments(self, model: EditableModel) -> Mapping[ProjectionKind, Sequence[int]]:
        """Whose keys' second moments `edit` takes: layers, by projection.

        A user's file is checked for them before any work is done, and where there is none the user
        hears from which text they are collected. Override it where an editor takes any.
        """
        return {}

    def estimate(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        expected: ExpectedCache,
    ) -> Sequence[StageCost]:
        """Work out what `edit` would cost, at most, and compute nothing.

        Override it so that users know what they are in for; without it they are told that the
        editor does not say.

        Args:
            model: The model; it may have no weights (`EditableModel.planned_device` is set then),
                but its tokens, its architecture and its sizes are there.
            requests: As for `edit`.
            resources: As for `edit`.
            expected: What earlier work of the same plan leaves in the cache; add what this does.

        Returns:
            The stages, in their order.
        """
        if self.computes_nothing:
            return []
        return [StageCost.unknown(self.name, "the editor does not say")]

    def preface(self, requests: Sequence[EditRequest]) -> Callable[[str], str] | None:
        """What the edit of `requests` will put before prompts that are asked; None for nothing.

        Plans ask for it, since it makes prompts longer. Override it where the edit is one of
        prompts, and not of weights.

        Args:
            requests: All that is written when the questions are asked.

        Returns:
            From a prompt to what will stand before it.
        """
        return None

    def prepare(  # noqa: B027  # most have nothing that can be done apart
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        share: Share,
    ) -> None:
        """Do a share of the work of `edit` ahead, and leave what comes of it in the cache.

        Override it where much of the work of one edit can be divided: on a cluster with nothing
        else to do, all shares are done side by side before `edit`, which must give the same with
        and without them.

        Args:
            model: As for `edit`.
            requests: All requests, as for `edit`.
            resources: As for `edit`; there is a cache.
            share: Which part to do.
        """

    @abstractmethod
    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """Compute the edit that writes `requests` into `model`.

        The model comes back bit-identical, with no hook on it, and the global state of random
        number generators as it was.

        Args:
            model: The model to edit.
            requests: What to write, free of conflicts.
            resources: Seed, cache folder, progress and optional inputs.

        Returns:
            The edit, a value that can be applied, saved and merged.
        """

    def open_stream(
        self, model: EditableModel, resources: Resources, carried: Carried | None = None
    ) -> Stream:
        """Begin to write batches of requests one after another.

        Override it where something is worth carrying from batch to batch. As it stands, `edit` is
        asked for each batch, with all earlier ones on the model; an editor that overrides
        `edit_stream` is asked there.

        Args:
            model: The model to edit.
            resources: As for `edit`.
            carried: What an earlier stream of this editor on this model carried, to go on from.
        """
        if inspect.unwrap(type(self).edit_stream) is not Editor.edit_stream:
            return DrivenStream(self, model, resources)
        return TotalStream(self, model, resources, carried)

    def edit_stream(
        self,
        model: EditableModel,
        batches: Iterable[Sequence[EditRequest]],
        resources: Resources,
    ) -> Iterator[Edit]:
        """Write batches of requests one after another, each into what those before it left.

        Args:
            model: The model to edit; between batches it is as it was.
            batches: What to write, each batch free of conflicts.
            resources: As for `edit`.

        Yields:
            After each batch, all that was written so far as one edit of the model as it was before
            the first. A stream of one batch gives what `edit` gives.
        """
        stream = self._begin_stream(model, resources)
        for batch in batches:
            yield stream.write(batch)

    def edit_in_batches(
        self,
        model: EditableModel,
        batches: Sequence[Sequence[EditRequest]],
        resources: Resources,
        on_written: Callable[[int], None] | None = None,
    ) -> Edit:
        """Write one or more batches as `edit_stream` does, and return the last edit alone.

        After each batch but the last `on_written` is told how many are written.
        """
        return write_batches(self._begin_stream(model, resources), batches, on_written)

    def _begin_stream(self, model: EditableModel, resources: Resources) -> Stream:
        """A stream that nobody goes on from; one may keep less than `open_stream` does."""
        return self.open_stream(model, resources)


class TrainedEditor(Editor):
    """An editor that has to be trained on a model before it can edit it."""

    @classmethod
    @abstractmethod
    def train_briefly(
        cls, model: EditableModel, cases: Sequence[EditCase], folder: Path
    ) -> EditorConfig:
        """Train for a few steps, so that ``editbench check`` has something to edit with.

        Args:
            model: The tiny model of the check.
            cases: Cases to train on, probes included; others than those that are edited.
            folder: An empty folder for what the training leaves behind; removed after the check.

        Returns:
            A configuration that names what was learned.
        """
