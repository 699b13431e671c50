"""MEND: a hypernetwork turns the gradients of edits into updates (Mitchell et al., 2021)."""
