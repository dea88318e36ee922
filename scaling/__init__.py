"""Scaling-law research in JAX: config -> sweep -> plan -> train -> results -> laws -> report -> next run."""
