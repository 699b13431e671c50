"""One closed-form loop with four slots: target, preservation, spreading, finish."""
