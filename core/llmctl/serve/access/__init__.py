"""Who may ask what: the guard before every route, and keys."""
