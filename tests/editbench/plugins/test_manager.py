"""Loading plugins: what registers, what is set aside, and what the user is told."""

import pytest

from editbench.errors import PluginError, UnknownNameError
from editbench.plugins import PluginManager, load_plugins
from editbench.plugins.hookspecs import HOOKS
from editbench.questions import Read


def only_failure(manager):
    (failure,) = manager.failures
    return str(failure)


def test_builtins_come_through_the_hooks_and_first(write_metric_plugin):
    manager = PluginManager([write_metric_plugin("third", "of-third")])
    found = [(each.name, each.plugin) for each in manager.registrations("metrics")]
    assert found[0] == ("success", "builtin")
    assert found[-1] == ("of-third", "third")
    assert {"unedited", "memit"} <= set(manager.editors())
    assert {"atlas", "counterfact", "zsre", "facts"} <= set(manager.datasets())
    assert {"atlas", "gpt2-xl", "gpt-j-6b", "gpt-neox-20b"} <= set(manager.models())
    assert manager.failures == ()


def test_looks_up_by_name():
    manager = PluginManager()
    assert manager.get_editor("memit").name == "memit"
    assert manager.get_dataset("zsre").name == "zsre"
    assert manager.get_metric("token-accuracy").name == "token-accuracy"


@pytest.mark.parametrize("kind", ["editor", "dataset", "metric"])
def test_unknown_name_suggests_the_nearest(kind):
    manager = PluginManager()
    misspelt = {"editor": "memt", "dataset": "zrse", "metric": "sucess"}[kind]
    meant = {"editor": "memit", "dataset": "zsre", "metric": "success"}[kind]
    with pytest.raises(UnknownNameError, match=f"unknown {kind} '{misspelt}'.*'{meant}'"):
        getattr(manager, f"get_{kind}")(misspelt)


def test_plugin_that_fails_to_import_is_set_aside_and_named(write_plugin, write_metric_plugin):
    broken = write_plugin("broken", "import a_module_that_is_not_there")
    manager = PluginManager([broken, write_metric_plugin("sound", "of-sound")])
    assert "plugin 'broken' failed: ModuleNotFoundError" in only_failure(manager)
    assert manager.get_metric("of-sound").name == "of-sound"
    with pytest.raises(UnknownNameError) as caught:
        manager.get_editor("an-editor-of-the-broken-plugin")
    assert any("plugin 'broken' failed" in note for note in caught.value.__notes__)


def test_plugin_that_exits_on_import_is_set_aside(write_plugin):
    manager = PluginManager([write_plugin("quitter", "raise SystemExit('bye')")])
    assert "plugin 'quitter' failed: SystemExit: bye" in only_failure(manager)


def test_misspelt_hook_is_an_error_with_a_suggestion(write_plugin):
    entry_point = write_plugin(
        "misspelt",
        """
        from editbench.plugins import hookimpl

        @hookimpl
        def editbench_register_editor():
            return []

        @hookimpl
        def editbench_register_metrics():
            raise AssertionError("a plugin with a misspelt hook must not be half active")
        """,
    )
    manager = PluginManager([entry_point])
    message = only_failure(manager)
    assert "unknown hook 'editbench_register_editor'" in message
    assert "Did you mean 'editbench_register_editors'?" in message
    assert manager.get_metric("success")
    assert "misspelt" not in manager.plugins


def test_hook_with_a_wrong_argument_is_an_error(write_plugin):
    entry_point = write_plugin(
        "curious",
        """
        from editbench.plugins import hookimpl

        @hookimpl
        def editbench_trial_finished(trial, results):
            pass
        """,
    )
    manager = PluginManager([entry_point])
    assert "results" in only_failure(manager)
    assert manager.trial_finished(object(), []) == ()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def editbench_register_editors(): return []", "implements no hook"),
        (
            """
            from editbench.plugins import hookimpl

            @hookimpl(wrapper=True)
            def editbench_register_editors():
                return (yield)
            """,
            "hook wrappers are not supported",
        ),
    ],
)
def test_plugin_that_could_not_work_is_an_error(write_plugin, source, expected):
    assert expected in only_failure(PluginManager([write_plugin("idle", source)]))


def test_metrics_of_texts_are_metrics_too(write_plugin):
    entry_point = write_plugin(
        "reader",
        """
        from editbench.metrics.base import TextMetric
        from editbench.plugins import hookimpl
        from editbench.questions import Read

        class Surprise(TextMetric):
            name = "surprise"
            produces = ("surprise",)
            def questions(self, text): return (Read(text),)
            def values(self, text, answers): return {"surprise": 1.0}

        @hookimpl
        def editbench_register_metrics():
            return [Surprise]
        """,
    )
    manager = PluginManager([entry_point])
    assert manager.failures == ()
    assert manager.get_metric("surprise")().questions("a b") == (Read("a b"),)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", "wrong return value, got None; expected a list"),
        ("return Metric", "expected a list"),
        ("return ['success']", "expected a subclass of editbench.metrics.base.Metric"),
        ("return [int]", "expected a subclass of editbench.metrics.base.Metric"),
        ("return [Metric]", "abstract. Implement: questions, values"),
        ("return [BaseMetric]", "expected a subclass of editbench.metrics.base.Metric or Text"),
        ("return [nameless()]", "no proper name, got None"),
        ("return [named('Not Proper')]", "no proper name, got 'Not Proper'"),
        ("raise OSError('no such luck')", "OSError: no such luck"),
    ],
)
def test_faulty_registration_is_set_aside(write_plugin, body, expected):
    entry_point = write_plugin(
        "faulty",
        f"""
        from editbench.metrics.base import BaseMetric, Metric
        from editbench.plugins import hookimpl

        def nameless():
            members = {{"questions": lambda s, c: (), "values": lambda s, c, a: {{}}}}
            return type("Nameless", (Metric,), members)

        def named(name):
            made = nameless()
            made.name = name
            return made

        @hookimpl
        def editbench_register_metrics():
            {body}
        """,
    )
    manager = PluginManager([entry_point])
    assert manager.get_metric("success")
    assert expected in only_failure(manager)
    manager.metrics()
    assert len(manager.failures) == 1  # called once, reported once


def test_model_that_is_no_spec_is_set_aside(write_plugin):
    entry_point = write_plugin(
        "faulty",
        """
        from editbench.plugins import hookimpl

        @hookimpl
        def editbench_register_models():
            return ["gpt2"]
        """,
    )
    manager = PluginManager([entry_point])
    assert "gpt2-xl" in manager.models()
    assert "not a model, got 'gpt2'; expected a ModelSpec" in only_failure(manager)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("repository=3", "model 'odd': wrong 'repository', got 3; expected a string"),
        ("load=3", "model 'odd': wrong 'load', got 3; expected a function"),
        ("repository='x', notes=None", "model 'odd': wrong 'notes', got None; expected a string"),
        ("repository='x', defaults=[1]", "wrong 'defaults', got [1]; expected a mapping for each"),
        (
            "repository='x', load=print",
            "exactly one of 'repository', 'find_file' and 'load' must be given",
        ),
        (
            "repository='x', defaults={'memit': {'layers': [1]}}",
            "model 'odd': defaults of 'memit': unknown field 'layers'",
        ),
        (
            "repository='x', defaults={'ft-w': {'layer': -1}}",
            "model 'odd': defaults of 'ft-w': field 'layer': Input should be greater than or",
        ),
    ],
)
def test_model_whose_spec_is_wrong_is_set_aside(write_plugin, spec, expected):
    entry_point = write_plugin(
        "odd-models",
        f"""
        from editbench.models.spec import ModelSpec
        from editbench.plugins import hookimpl

        @hookimpl
        def editbench_register_models():
            return [ModelSpec("odd", {spec})]
        """,
    )
    manager = PluginManager([entry_point])
    assert "odd" not in manager.models()
    assert only_failure(manager).startswith("plugin 'odd-models' failed: ")
    assert only_failure(manager).endswith(" (in editbench_register_models())")
    assert expected in only_failure(manager)


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("metrics", "name = 'odd'", "metric 'odd': it has no 'produces'"),
        ("metrics", "name = 'odd'; produces = 'odd'", "metric 'odd': wrong 'produces', got 'odd'"),
        ("metrics", "name = 'odd'; produces = ('odd',); mean = 'median'", "wrong 'mean', got 'med"),
        ("metrics", "name = 'odd'; produces = ('odd',); bounds = (0,)", "cannot be described"),
        ("datasets", "name = 'odd'; default_metrics = 'success'", "wrong default_metrics, got 'su"),
        ("editors", "name = 'odd'; config_type = dict", "wrong config_type, got <class 'dict'>"),
    ],
)
def test_class_that_says_wrong_things_about_itself_is_set_aside(write_plugin, kind, body, expected):
    base = kind.removesuffix("s").capitalize()
    entry_point = write_plugin(
        "odd-classes",
        f"""
        from editbench.{kind}.base import {base}
        from editbench.plugins import hookimpl

        class Odd({base}):
            {body}
            edit = cases = fingerprint = questions = values = None

        @hookimpl
        def editbench_register_{kind}():
            return [Odd]
        """,
    )
    manager = PluginManager([entry_point])
    assert "odd" not in getattr(manager, kind)()
    assert expected in only_failure(manager)


def test_one_name_from_two_plugins_is_an_error_that_names_both(write_metric_plugin):
    manager = PluginManager(
        [write_metric_plugin("one", "taken"), write_metric_plugin("other", "taken")]
    )
    for _ in range(2):
        with pytest.raises(PluginError, match=r"'taken' is registered twice.*'one'.*'other'"):
            manager.get_metric("success")
    assert manager.get_dataset("zsre")


def test_name_of_a_builtin_cannot_be_taken(write_metric_plugin):
    manager = PluginManager([write_metric_plugin("usurper", "success")])
    with pytest.raises(PluginError, match=r"'success' is registered twice.*'builtin'.*'usurper'"):
        manager.metrics()


def test_two_plugins_of_one_name(write_metric_plugin):
    manager = PluginManager([write_metric_plugin("twin", "a"), write_metric_plugin("twin", "b")])
    assert "a plugin called 'twin' is loaded already" in only_failure(manager)
    assert manager.get_metric("a")


@pytest.mark.parametrize(
    ("disabled", "left"), [(["one"], {"of-two"}), (["*"], set()), (["x"], {"of-one", "of-two"})]
)
def test_disabled_plugins_are_not_even_imported(write_metric_plugin, disabled, left):
    plugins = [write_metric_plugin("one", "of-one"), write_metric_plugin("two", "of-two")]
    manager = PluginManager(plugins, disabled=disabled)
    assert {name for name in manager.metrics() if name.startswith("of-")} == left
    assert manager.failures == ()


def test_installed_plugins_are_found_and_can_be_disabled(tmp_path, write_metric_plugin):
    entry_point = write_metric_plugin("installed", "of-installed")
    metadata = tmp_path / "somebodys_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-plugin\n")
    (metadata / "entry_points.txt").write_text(
        f"[editbench]\ninstalled = {entry_point.value}\ngone = a_module_that_is_not_there\n"
    )
    manager = load_plugins({})
    assert manager.get_metric("of-installed")
    assert manager.plugins["installed"] == "somebodys-plugin"
    assert "plugin 'gone' (somebodys-plugin) failed" in only_failure(manager)
    manager = load_plugins({"EDITBENCH_DISABLE_PLUGINS": "gone, installed"})
    assert (set(manager.plugins), manager.failures) == ({"builtin"}, ())


def test_finished_trials_are_told_to_all_whatever_one_of_them_does(write_plugin):
    template = """
        from editbench.plugins import hookimpl

        @hookimpl
        def editbench_trial_finished({arguments}):
            {body}
        """
    plugins = [
        write_plugin(name, template.format(arguments=arguments, body=body))
        for name, arguments, body in [
            ("first", "trial", "trial.append('first')"),
            ("fails", "trial, rows", "raise ValueError(f'{len(rows)} rows')"),
            ("last", "rows, trial", "trial.append(rows)"),
        ]
    ]
    heard = []
    failures = PluginManager(plugins).trial_finished(heard, ["row"])
    assert heard == ["first", ["row"]]
    assert [str(failure) for failure in failures] == [
        "plugin 'fails' failed: ValueError: 1 rows (in editbench_trial_finished())"
    ]


def test_there_are_no_other_hooks():
    manager = PluginManager()
    specified = {name for name in vars(manager._pluggy.hook) if not name.startswith("_")}
    assert specified == set(HOOKS)
