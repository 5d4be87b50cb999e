"""A function of attention that somebody wrote to learn it, against the contract, rule by rule."""

__all__: list[str] = []
