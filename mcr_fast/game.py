"""The game between the encoders: who is in a subset, and by which factor each gets its gradient."""


def members(subset: int, num_modalities: int) -> list[int]:
    """The modalities of a subset."""
    return [m for m in range(num_modalities) if subset >> m & 1]


_OUTSIDERS = {"greedy": -1, "independent": 0, "collaborative": 1}


def route_factors(strategy: str, subset: int, num_modalities: int) -> list[int]:
    """route(S, m) for every modality: 1 for members, the outsider factor k for others."""
    if strategy not in _OUTSIDERS:
        raise ValueError(f"strategy must be one of {', '.join(_OUTSIDERS)}, got {strategy!r}")
    return [1 if subset >> m & 1 else _OUTSIDERS[strategy] for m in range(num_modalities)]


def head_factor(strategy: str, subset: int, num_modalities: int) -> int:
    """head(S): the factor of the parameters that all modalities share."""
    if strategy == "collaborative":
        return 1
    return sum(route_factors(strategy, subset, num_modalities))
