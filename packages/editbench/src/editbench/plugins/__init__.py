"""How editors, datasets, metrics, models and commands come from plugins.

A plugin's author needs `hookimpl`; a program that looks things up by name needs `load_plugins`.
"""

from editbench.plugins.hookspecs import hookimpl
from editbench.plugins.manager import PluginManager, load_plugins

__all__ = ["PluginManager", "hookimpl", "load_plugins"]
