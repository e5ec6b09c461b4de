"""Loading families by entry point: what is found, what is refused, and what the refusal says."""

import json
import sys

import pytest

from llmctl import plugins
from llmctl.errors import PluginError
from llmctl.plugins import hookspecs, registry
from llmctl.plugins.loading import load_installed


def test_a_family_outside_the_repository_loads(fakes):
    fakes("third_party")
    plugin = plugins.load("parrot")
    assert (plugin.installed.distribution, plugin.installed.version) == ("fake-parrot", "3.1.0")
    dims = plugin.card.dims_of("tiny")
    assert plugin.card.count(dims) == plugin.card.sizes["tiny"].parameters
    renames = {r.target: r for r in plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")}
    assert renames["parrot.blocks.1.down.weight"].source == "transformer.blocks.1.mlp.c_proj.weight"
    assert not renames["parrot.blocks.1.down.weight"].transpose


def test_unknown_family_names_the_nearest_and_the_remedy(fakes):
    fakes("third_party")
    with pytest.raises(
        PluginError,
        match=r"Did you mean 'parrot'\?.*llmctl new-plugin parot, since none of llmctl's own distributions has it",
    ):
        plugins.load("parot")


def test_broken_import_names_distribution_version_cause_and_remedy(fakes):
    fakes("broken", "third_party")
    with pytest.raises(PluginError) as caught:
        plugins.load("brokenfam")
    message = str(caught.value)
    for part in ("fake-broken 1.2.3", "fake_broken", "a_module_that_nobody_has", "pip install --upgrade fake-broken"):
        assert part in message
    assert plugins.load("parrot").card.name == "parrot"


def test_strict_mode_shows_authors_the_original_error(fakes, monkeypatch):
    fakes("broken")
    monkeypatch.setenv("LLMCTL_STRICT", "1")
    with pytest.raises(ModuleNotFoundError):
        plugins.load("brokenfam")


def test_misspelt_hook_is_refused_with_the_right_name(fakes):
    fakes("typo")
    with pytest.raises(PluginError, match=r"fake-typo 0.4.0.*'descibe_family'; did you mean 'describe_family'"):
        plugins.load("typofam")


def test_other_api_is_refused_before_import(fakes):
    fakes("old_api")
    with pytest.raises(
        PluginError, match=r"fake-old 9.0.0 provides 'newfam' for hook API v7.*has v0.*upgrade paddle-llmctl"
    ):
        plugins.load("newfam")


def test_a_plugin_installed_from_its_sources_is_to_be_mended_there(tmp_path, monkeypatch):
    package = plugin_at(tmp_path, monkeypatch, "def describe_family(:\n")
    origin = {"url": f"file://{tmp_path}", "dir_info": {"editable": True}}
    next(tmp_path.glob("*.dist-info")).joinpath("direct_url.json").write_text(json.dumps(origin))
    with pytest.raises(PluginError) as caught:
        plugins.load("wren")
    assert f"SyntaxError: invalid syntax ({package.name}, line 1)" in str(caught.value)
    assert f"fix it in {tmp_path}" in str(caught.value) and "pip install" not in str(caught.value)


WREN = """
from llmctl import Family, Param, Size, hookimpl
CARD = Family(name="wren", architectures=("WrenForCausalLM",), params=(Param("a", "4"),), settings=(), sizes={},
              modeling="fake_wren.%s")
@hookimpl
def describe_family():
    return CARD
"""


def plugin_at(folder, monkeypatch, text):
    """A distribution fake-wren with this card and a modeling file; the card's file."""
    package, info = folder / "fake_wren", folder / "fake_wren-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-wren\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{hookspecs.GROUP}]\nwren = fake_wren\n")
    (package / "modeling.py").write_text("import a_module_that_nobody_has\n\nclass WrenForCausalLM:\n    pass\n")
    (package / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "fake_wren", raising=False)
    return package / "__init__.py"


@pytest.mark.parametrize(
    ("modeling", "message"),
    [
        ("modeling:WrenForCausalLm", r"modeling\.py has no 'WrenForCausalLm'; did you mean 'WrenForCausalLM'\?"),
        ("modelling:WrenForCausalLM", r"there is no file .*modelling\.py"),
        ("modeling:WrenForCausalLM", ""),
    ],
)
def test_a_class_that_the_package_does_not_have_is_seen_without_importing_it(tmp_path, monkeypatch, modeling, message):
    plugin_at(tmp_path, monkeypatch, WREN % modeling)
    if not message:
        assert plugins.load("wren").card.name == "wren"
        (tmp_path / "fake_wren" / "modeling.py").write_text("class WrenForCausalLM(:\n")
        message = r"SyntaxError: invalid syntax \(modeling\.py, line 1\)"
    with pytest.raises(PluginError, match=message):
        plugins.load("wren")


def test_why_the_family_of_a_checkpoint_is_not_usable_comes_first_and_whole(tmp_path, monkeypatch):
    plugin_at(tmp_path, monkeypatch, WREN % "modelling:WrenForCausalLM")
    with pytest.raises(PluginError) as caught:
        plugins.resolve("auto", {"architectures": ["WrenForCausalLM"]}, "m/config.json")
    message = str(caught.value)
    assert message.startswith(
        "not usable: fake-wren 1.0: the card of 'wren' is not valid:\n  modeling='fake_wren.modelling"
    )
    assert "no installed family claims the architecture WrenForCausalLM" in message and "pip install" not in message


def test_two_claimants_are_both_named_and_neither_is_imported(fakes):
    fakes("duplicate_a", "duplicate_b")
    with pytest.raises(PluginError, match="claimed by fake-dup-a 1.0.0 and fake-dup-b 2.0.0"):
        plugins.load("twin")


def test_invalid_card_lists_its_problems(fakes):
    fakes("bad_card")
    with pytest.raises(PluginError) as caught:
        plugins.load("badcard")
    for part in ("'latent' is not a field", "unknown placeholder {depth}", "modeling='nowhere'"):
        assert part in str(caught.value)


def test_family_is_found_by_the_architecture_of_a_checkpoint(fakes):
    fakes("third_party", "broken")
    assert plugins.resolve("auto", {"architectures": ["ParrotForCausalLM"]}, "config.json").card.name == "parrot"
    with pytest.raises(PluginError) as caught:
        plugins.resolve("auto", {"architectures": ["FalconForCausalLM"]}, "m/config.json")
    message = str(caught.value)
    assert "no installed family claims the architecture FalconForCausalLM" in message
    assert "llmctl new-plugin falcon" in message and "fake-broken 1.2.3" in message
    with pytest.raises(PluginError, match="says FalconForCausalLM, which is not of the family parrot"):
        plugins.resolve("parrot", {"architectures": ["FalconForCausalLM"]}, "m/config.json")


def test_families_list_the_distributions_once_and_load_each_plugin_once(fakes, monkeypatch):
    fakes("third_party", "broken")
    loads, lists, listed = [], [], plugins.installed
    monkeypatch.setattr(registry, "load_installed", lambda found: loads.append(found.name) or load_installed(found))
    monkeypatch.setattr(registry, "installed", lambda: lists.append(1) or listed())
    families = plugins.Families()
    plugin = families.resolve("auto", {"architectures": ["ParrotForCausalLM"]}, "config.json")
    assert families.load("parrot") is plugin is families.load_for({"architectures": ["ParrotForCausalLM"]}, "x")
    for _ in range(2):
        with pytest.raises(PluginError, match="a_module_that_nobody_has"):
            families.load("brokenfam")
    assert sorted(loads) == families.names and len(lists) == 1


def test_a_plugin_overrides_one_hook_and_keeps_the_other_defaults(fakes):
    from llmctl import hookimpl

    fakes("third_party")
    plugin = plugins.load("parrot")
    manager = plugin.hooks.describe_family

    class Override:
        @hookimpl
        def fused_graph(self, card):
            return f"of {card.name}"

    import fake_parrot
    import pluggy

    from llmctl.plugins import defaults

    pm = pluggy.PluginManager(hookspecs.PROJECT)
    pm.add_hookspecs(hookspecs)
    for part in (defaults, fake_parrot, Override()):
        pm.register(part)
    dims = plugin.card.dims_of("tiny")
    assert pm.hook.fused_graph(card=plugin.card, dims=dims) == "of parrot"
    assert len(pm.hook.weight_map(card=plugin.card, dims=dims, source="torch")) == 9
    assert manager() is plugin.card


def test_every_hook_has_a_default_or_is_describe_family():
    from llmctl.plugins import defaults

    hooks = {name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")}
    answered = {name for name, value in vars(defaults).items() if hasattr(value, f"{hookspecs.PROJECT}_impl")}
    assert hooks == answered | {"describe_family"} and len(hooks) == 7
