"""Several machines: which one this is, by options or by what a cluster says, and how their launchers meet. No paddle here."""
