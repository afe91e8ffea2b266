//! The command line: one file per subcommand.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]
