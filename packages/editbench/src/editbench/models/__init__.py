"""Models: from a name to something that can be edited and questioned.

Nothing is imported here, so that `editbench.models.spec` stays free of torch: import from
`architecture`, `tokens`, `editable`, `loading`, `answering`, `head` and `spec`.
"""
