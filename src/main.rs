//! skewtrap: parse, call one command, print error and hint, exit status.

fn main() {}
