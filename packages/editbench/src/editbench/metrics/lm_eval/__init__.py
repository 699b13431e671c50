"""General ability: tasks of the LM Evaluation Harness (``lm_eval``), asked of a model itself."""
