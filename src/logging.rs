//! `--debug`: each step in detail on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts the program's own log; that of the libraries is left out. Without `debug` nothing is
/// written: what a user must know is said by the console and by errors.
pub fn start(debug: bool) {
    if debug {
        tracing_subscriber::fmt()
            .with_max_level(LevelFilter::DEBUG)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .finish()
            .with(Targets::new().with_target("clearml_agent", LevelFilter::DEBUG))
            .init();
    }
}
