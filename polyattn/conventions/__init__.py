"""What else attention could mean: calls, conventions and mistakes, and what they answer."""

__all__: list[str] = []
