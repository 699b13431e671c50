"""E[k kᵀ] over ordinary text: collected, stored, merged, factorized."""
