"""The Recursive Language Model scaffold as a verifiers v1 harness (id ``rlm_env``)."""
