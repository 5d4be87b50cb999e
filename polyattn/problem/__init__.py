"""The arguments of attention, checked and in canonical form."""
