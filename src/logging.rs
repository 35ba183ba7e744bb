//! `--debug`: each step in detail on standard error.

use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::mask::Mask;
use crate::outlet;

/// Starts the program's own log; that of the libraries is left out. Without `debug` nothing is
/// written: what a user must know is said by the console and by errors.
pub fn start(debug: bool, mask: &Mask) {
    let mask = mask.clone();
    if debug {
        tracing_subscriber::fmt()
            .with_max_level(LevelFilter::DEBUG)
            .with_writer(move || Masked(mask.clone()))
            .with_ansi(std::io::stderr().is_terminal())
            .finish()
            .with(Targets::new().with_target("clearml_agent", LevelFilter::DEBUG))
            .init();
    }
}

/// Standard error, without secrets. An event is written in one piece.
struct Masked(Mask);

impl Write for Masked {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        outlet::stderr().write(self.0.mask(&text).as_str().as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
