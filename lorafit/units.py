"""Human units: the only place that divides bytes by 1024**3; they are integers elsewhere."""

KIB = 1024
MIB = 1024**2
GIB = 1024**3


def format_bytes(num_bytes: float) -> str:
    """Return `num_bytes` with a binary unit and three significant digits, such as `5.18 GiB`."""
    sign = "-" if num_bytes < 0 else ""
    value = abs(num_bytes)
    for unit, scale in (("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        # 0.9995 so that 1023.9 MiB is shown as 1.00 GiB and never as 1024 MiB.
        if value >= scale * 0.9995:
            scaled = value / scale
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{sign}{scaled:.{digits}f} {unit}"
    return f"{sign}{value:.0f} B"


def format_duration(seconds: float) -> str:
    """Return a duration such as `3.2 s`, `4 min 05 s` or `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_about(seconds: float) -> str:
    """Return a rounded duration, such as `40 s`, `12 min`, `2.4 h` or `3.1 days`."""
    for unit, scale in (("days", 86_400), ("h", 3600), ("min", 60)):
        # From 1.5 of a unit on: below, the smaller one tells more.
        if seconds >= 1.5 * scale:
            scaled = seconds / scale
            return f"{scaled:.1f} {unit}" if scaled < 9.95 else f"{scaled:.0f} {unit}"
    return f"{max(1.0, seconds):.0f} s"


def format_count(number: float) -> str:
    """Return a count with a decimal suffix, such as `2.78 B` for billions or `14.7 K`."""
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e4)):
        if abs(number) >= scale:
            shown = number / (1e3 if suffix == "K" else scale)
            return f"{shown:.3g} {suffix}"
    return f"{number:,.0f}"
