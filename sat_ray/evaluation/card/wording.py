"""How the checks of a robustness card spell figures beside their limits."""

MOST_DECIMALS = 6  # of a percentage


def percent(fraction: float) -> str:
    """Return a fraction in percent with one decimal."""
    return f"{100 * fraction:.1f} %"


def beside(found: float, allowed: float) -> tuple[str, str]:
    """Return two fractions in percent, with one decimal, or as many as tell them apart.

    So what is above its limit is never printed as equal to it.
    """
    decimals = next(
        (
            number
            for number in range(1, MOST_DECIMALS)
            if (round(100 * found, number) > round(100 * allowed, number)) == (found > allowed)
        ),
        MOST_DECIMALS,
    )
    return f"{100 * found:.{decimals}f}", f"{100 * allowed:.{decimals}f}"


def loss(lost: float, allowed: float, *, of: float) -> str:
    """Say how much accuracy an attack takes of what was left, and how much it may take."""
    if lost < 0:
        return f"{100 * -lost:.1f} points more"
    shown, limit = beside(lost, allowed)
    share = f"{100 * lost / of:.1f} % of them" if of else "none was left"
    return f"{shown} points less, {share} (allowed: {limit} points)"
