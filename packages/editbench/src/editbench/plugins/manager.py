"""Which plugins are there, what they register, and what is wrong with those that fail."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from editbench.errors import EditbenchError, PluginError, UnknownNameError
from editbench.plugins import builtin, hookspecs
from editbench.plugins.guard import Origin, describe, guard_command
from editbench.plugins.registry import Kind, Registration, guard, register, reject_duplicates

if TYPE_CHECKING:
    import click

    from editbench.datasets.base import Dataset
    from editbench.editors.base import Editor
    from editbench.metrics.base import AnyMetric
    from editbench.models.spec import ModelSpec
    from editbench.results.row import Row
    from editbench.runner import Trial

ENTRY_POINT_GROUP = "editbench"
DISABLE_VARIABLE = "EDITBENCH_DISABLE_PLUGINS"
BUILTIN = "builtin"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """A third-party plugin that could not be loaded, or one of whose hooks failed.

    Attributes:
        origin: The plugin, and the distribution that it belongs to.
        hook: Which of its hooks failed; empty if it could not be loaded.
        error: What was raised, with its traceback.
    """

    origin: Origin
    hook: str
    error: BaseException

    def __str__(self) -> str:
        is_told = isinstance(self.error, EditbenchError)
        reason = str(self.error) if is_told else describe(self.error)
        where = f" (in {self.hook}())" if self.hook else ""
        return f"{self.origin} failed: {reason}{where}"


class PluginManager:
    """Loads plugins, and looks up by name what they register.

    Built-ins are registered first, through the same hooks. A third-party plugin that fails is set
    aside and kept in `failures`; everything else goes on working.

    Args:
        plugins: Entry points of third-party plugins, loaded in this order.
        disabled: Names of entry points to leave out; ``*`` leaves out all of them.
    """

    def __init__(self, plugins: Iterable[EntryPoint] = (), *, disabled: Iterable[str] = ()) -> None:
        self._pluggy = pluggy.PluginManager("editbench")
        self._pluggy.add_hookspecs(hookspecs)
        self._pluggy.register(builtin, name=BUILTIN)
        self._pluggy.check_pending()
        self._plugins = {BUILTIN: Origin(BUILTIN, "editbench")}
        self._failures: list[PluginFailure] = []
        self._registrations: dict[Kind, list[Registration]] = {}
        blocked = set(disabled)
        for plugin in plugins:
            if not blocked & {plugin.name, "*"}:
                self._load(plugin)

    @property
    def plugins(self) -> Mapping[str, str | None]:
        """The plugins that loaded, in order, each with the distribution that it came in."""
        return {name: origin.distribution for name, origin in self._plugins.items()}

    @property
    def failures(self) -> Sequence[PluginFailure]:
        """What went wrong with third-party plugins so far.

        One whose import fails is here from the start; one whose hook fails, from the first time
        that the hook is called.
        """
        return tuple(self._failures)

    def registrations(self, kind: Kind) -> Sequence[Registration]:
        """All that is registered of one kind, built-ins first.

        Raises:
            PluginError: Two plugins registered the same name.
        """
        if kind not in self._registrations:
            collected: list[Registration] = []
            hook = f"editbench_register_{kind}"
            for implementation in self._implementations(hook):
                origin = self._plugins[implementation.plugin_name]
                with self._setting_aside(origin, hook):
                    found = register(kind, implementation.function(), origin.plugin)
                    if origin.plugin != BUILTIN:
                        found = [guard(kind, each, origin) for each in found]
                        if kind == "models":
                            self._check_defaults([each.value for each in found])
                    collected += found
            self._registrations[kind] = collected
        reject_duplicates(kind, self._registrations[kind])
        return self._registrations[kind]

    def editors(self) -> "dict[str, type[Editor]]":
        """The known editors, by name."""
        return self._by_name("editors")

    def datasets(self) -> "dict[str, type[Dataset]]":
        """The known datasets, by name."""
        return self._by_name("datasets")

    def metrics(self) -> "dict[str, type[AnyMetric]]":
        """The known metrics, by name."""
        return self._by_name("metrics")

    def models(self) -> "dict[str, ModelSpec]":
        """The models that have a short name."""
        return self._by_name("models")

    def get_editor(self, name: str) -> "type[Editor]":
        """Look up an editor; raises `UnknownNameError` with the nearest name."""
        return self._look_up("editor", self.editors(), name)

    def get_dataset(self, name: str) -> "type[Dataset]":
        """Look up a dataset; raises `UnknownNameError` with the nearest name."""
        return self._look_up("dataset", self.datasets(), name)

    def get_metric(self, name: str) -> "type[AnyMetric]":
        """Look up a metric; raises `UnknownNameError` with the nearest name."""
        return self._look_up("metric", self.metrics(), name)

    def add_commands(self, cli: "click.Group") -> None:
        """Let plugins add commands to `cli`; one that fails leaves no command behind."""
        hook = "editbench_register_commands"
        for implementation in self._implementations(hook):
            before = dict(cli.commands)
            origin = self._plugins[implementation.plugin_name]
            with self._setting_aside(origin, hook):
                try:
                    _call(implementation, cli=cli)
                    taken = [name for name in before if cli.commands.get(name) is not before[name]]
                    if taken:
                        raise PluginError(f"the command '{taken[0]}' exists already.")
                    for name in cli.commands.keys() - before:
                        guard_command(cli.commands[name], origin)
                except BaseException:
                    cli.commands.clear()
                    cli.commands.update(before)
                    raise

    def trial_finished(self, trial: "Trial", rows: "Sequence[Row]") -> Sequence[PluginFailure]:
        """Tell plugins that a trial has finished; returns the failures among them."""
        n_known = len(self._failures)
        hook = "editbench_trial_finished"
        for implementation in self._implementations(hook):
            with self._setting_aside(self._plugins[implementation.plugin_name], hook):
                _call(implementation, trial=trial, rows=rows)
        return tuple(self._failures[n_known:])

    def _by_name(self, kind: Kind) -> dict[str, Any]:
        return {found.name: found.value for found in self.registrations(kind)}

    def _look_up(self, noun: str, known: Mapping[str, T], name: str) -> T:
        if name not in known:
            error = UnknownNameError(noun, name, known)
            self.suspect_failures(error)
            raise error
        return known[name]

    def suspect_failures(self, error: BaseException) -> None:
        """Add to an error about an unknown name that it may be one of a plugin that failed."""
        for failure in self._failures:
            error.add_note(f"It may belong to a plugin that is out of order: {failure}")

    def _check_defaults(self, specs: "Iterable[ModelSpec]") -> None:
        """Refuse specs whose hyperparameters their editors would not take."""
        for spec in specs:
            for name, editor in self.editors().items() if spec.defaults else ():
                if name in spec.defaults:
                    source = f"model '{spec.name}': defaults of '{name}'"
                    editor.config_type.parse(spec.defaults[name], source)

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        return list(getattr(self._pluggy.hook, hook).get_hookimpls())

    def _load(self, entry_point: EntryPoint) -> None:
        name = entry_point.name
        origin = _find_origin(entry_point)
        with self._setting_aside(origin):
            if self._pluggy.has_plugin(name):
                raise PluginError(f"a plugin called '{name}' is loaded already.")
            plugin = entry_point.load()
            self._pluggy.register(plugin, name=name)
            try:
                self._check_hooks(plugin)
            except PluginError:
                self._pluggy.unregister(plugin)
                raise
            self._plugins[name] = origin

    def _check_hooks(self, plugin: object) -> None:
        callers = self._pluggy.get_hookcallers(plugin) or []
        try:
            self._pluggy.check_pending()
        except pluggy.PluginValidationError as error:
            unknown = next(caller.name for caller in callers if not caller.has_spec())
            raise PluginError(str(UnknownNameError("hook", unknown, hookspecs.HOOKS))) from error
        if not callers:
            raise PluginError(
                "it implements no hook. Decorate its functions with editbench.plugins.hookimpl."
            )
        for caller in callers:
            for found in caller.get_hookimpls():
                if found.plugin is plugin and (found.wrapper or found.hookwrapper):
                    raise PluginError(f"{caller.name}: hook wrappers are not supported.")

    @contextmanager
    def _setting_aside(self, origin: Origin, hook: str = "") -> Iterator[None]:
        """Keep what a third-party plugin raises; a built-in that raises is a defect."""
        try:
            yield
        except BaseException as error:  # attempts to end the process included
            if origin.plugin == BUILTIN or isinstance(error, KeyboardInterrupt):
                raise
            self._failures.append(PluginFailure(origin, hook, error))


def load_plugins(environment: Mapping[str, str] = os.environ) -> PluginManager:
    """Load the plugins that are installed here.

    Args:
        environment: Where ``EDITBENCH_DISABLE_PLUGINS`` is looked up: a comma-separated list of
            plugins to leave out, or ``*`` for all but the built-ins.
    """
    disabled = (name.strip() for name in environment.get(DISABLE_VARIABLE, "").split(","))
    found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda plugin: plugin.name)
    return PluginManager(found, disabled=disabled)


def _find_origin(entry_point: EntryPoint) -> Origin:
    if entry_point.dist is None:
        return Origin(entry_point.name)
    read = entry_point.dist.metadata.get_all  # it may be damaged, and lack anything
    name, version = ((read(key) or [None])[0] for key in ("Name", "Version"))
    return Origin(entry_point.name, name, version)


def _call(implementation: pluggy.HookImpl, **arguments: object) -> None:
    """Pass an implementation the arguments that it asks for, as pluggy does."""
    implementation.function(*(arguments[name] for name in implementation.argnames))
