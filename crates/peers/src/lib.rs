//! Nothing: the tests and benchmarks beside it compare our readers with the crates whose work they do.
