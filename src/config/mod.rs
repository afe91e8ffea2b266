//! YAML text to types, with every problem of a file reported at once, in its place.
