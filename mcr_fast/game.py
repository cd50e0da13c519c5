"""The game between the encoders: who is in a subset, and by which factor each gets its gradient."""

from mcr_fast._names import STRATEGIES, choice


def members(subset: int, num_modalities: int) -> list[int]:
    """The modalities of a subset."""
    return [m for m in range(num_modalities) if subset >> m & 1]


_OUTSIDERS = dict(zip(STRATEGIES, (-1, 0, 1), strict=True))


def route_factors(strategy: str, subset: int, num_modalities: int) -> list[int]:
    """route(S, m) for every modality: 1 for members, the outsider factor k for others."""
    choice("strategy", strategy, STRATEGIES)
    return [1 if subset >> m & 1 else _OUTSIDERS[strategy] for m in range(num_modalities)]


def head_factor(strategy: str, subset: int, num_modalities: int) -> int:
    """head(S): the factor of the parameters that all modalities share."""
    if strategy == "collaborative":
        return 1
    return sum(route_factors(strategy, subset, num_modalities))
