"""Editors: methods that turn requests and a model into an edit."""
