//! Standard output and standard error, as far as the agent itself writes there. Whoever reads them may
//! have stopped to (a terminal on hold, a full pipe) or be gone (`| head`, a lost connection), and
//! neither may hold up the run: a thread does the writing, and what it cannot get rid of is left out.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::console::counted;

/// What may wait to be written (bytes).
const MOST: usize = 1024 * 1024;
/// One write: a part that a reader takes at once shows that there is one.
const PART: usize = 4096;
/// A reader that takes nothing for so long is not waited for.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// A stream that is never waited for long. A cheap handle.
#[derive(Debug, Clone)]
pub struct Outlet(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<u8>,
    is_writing: bool,
    /// How many parts were taken.
    taken: u64,
    is_stuck: bool,
    is_gone: bool,
    /// Bytes for which there was no room, and the reader has not been told.
    left_out: u64,
}

/// Standard error: the agent's words that are no part of the log.
pub fn stderr() -> &'static Outlet {
    static STDERR: OnceLock<Outlet> = OnceLock::new();
    STDERR.get_or_init(|| Outlet::new(io::stderr().as_fd().try_clone_to_owned()))
}

/// Standard output, for what does not come by way of the journal's file.
pub fn stdout() -> &'static Outlet {
    static STDOUT: OnceLock<Outlet> = OnceLock::new();
    STDOUT.get_or_init(|| Outlet::new(io::stdout().as_fd().try_clone_to_owned()))
}

/// Says a line, or more, on standard error, in the agent's name. It must hold no secret.
pub fn complain(text: impl std::fmt::Display) {
    stderr().write(format!("clearml-agent: {text}\n").as_bytes());
}

/// Before the program ends: waits until all is written, unless nobody reads.
pub fn finish() {
    stdout().finish();
    stderr().finish();
}

impl Outlet {
    /// What cannot be written to is as one whose reader is gone.
    fn new(sink: io::Result<OwnedFd>) -> Outlet {
        let shared = Arc::new(Shared::default());
        let writing = sink.and_then(|sink| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("outlet".into())
                .spawn(move || shared.write_to(File::from(sink)))
        });
        if writing.is_err() {
            shared.state().is_gone = true;
        }
        Outlet(shared)
    }

    /// Writes all of `bytes`, or nothing where there is no room and nobody makes any.
    pub fn write(&self, bytes: &[u8]) {
        let mut state = self.0.state();
        while !state.has_room(bytes.len()) && !state.is_stuck && !state.is_gone {
            state = self.0.wait(state);
        }
        if state.is_gone {
            return;
        }
        if !state.has_room(bytes.len()) {
            state.left_out += bytes.len() as u64;
            return;
        }
        state.tell_what_is_left_out();
        state.waiting.extend(bytes);
        drop(state);
        self.0.changed.notify_all();
    }

    fn finish(&self) {
        let mut state = self.0.state();
        state.is_stuck = false;
        while !state.is_done() && !state.is_stuck {
            state = self.0.wait(state);
        }
    }
}

impl Shared {
    /// Waits for a change; finds that the reader is stuck where there is none.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let taken = state.taken;
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, STUCK_AFTER, |s| s.taken == taken && !s.is_done())
            .unwrap_or_else(PoisonError::into_inner);
        state.is_stuck = state.taken == taken && !state.is_done();
        state
    }

    fn write_to(&self, mut sink: File) {
        let mut part = Vec::with_capacity(PART);
        loop {
            part.clear();
            let mut state = self
                .changed
                .wait_while(self.state(), |s| s.waiting.is_empty() && s.left_out == 0)
                .unwrap_or_else(PoisonError::into_inner);
            if state.waiting.is_empty() {
                state.tell_what_is_left_out();
            }
            let length = state.waiting.len().min(PART);
            part.extend(state.waiting.drain(..length));
            state.is_writing = true;
            drop(state);
            let written = write_all(&mut sink, &part);
            let mut state = self.state();
            state.is_writing = false;
            state.taken += 1;
            state.is_stuck = false;
            state.is_gone = written.is_err();
            drop(state);
            self.changed.notify_all();
            if written.is_err() {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A piece of any size fits where nothing waits.
    fn has_room(&self, more: usize) -> bool {
        self.waiting.is_empty() || self.waiting.len() + more <= MOST
    }

    fn is_done(&self) -> bool {
        self.is_gone || (self.waiting.is_empty() && !self.is_writing && self.left_out == 0)
    }

    fn tell_what_is_left_out(&mut self) {
        let bytes = std::mem::take(&mut self.left_out);
        if bytes > 0 {
            self.waiting.extend(left_out(bytes).as_bytes());
        }
    }
}

/// What a reader is told that was stuck.
pub(crate) fn left_out(bytes: u64) -> String {
    format!(
        "\n[clearml-agent: {} left out here, nobody was reading]\n",
        counted(bytes, "byte")
    )
}

/// As [`io::Write::write_all`], but a terminal that somebody else has made non-blocking is waited for.
pub(crate) fn write_all(sink: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(10)),
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn all_that_is_read_is_written_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let outlet = Outlet::new(Ok(writer.into()));
        let reading = std::thread::spawn(move || {
            let mut text = vec![0; 3 * MOST];
            reader.read_exact(&mut text).unwrap();
            text
        });
        let text: Vec<u8> = (0..3 * MOST).map(|n| (n % 251) as u8).collect();
        for part in text.chunks(1000) {
            outlet.write(part);
        }
        outlet.finish();
        assert!(reading.join().unwrap() == text);
    }

    #[test]
    fn one_that_is_stuck_is_left_and_told_so_later() {
        let (mut reader, writer) = io::pipe().unwrap();
        let outlet = Outlet::new(Ok(writer.into()));
        for _ in 0..4 {
            outlet.write(&vec![b'x'; MOST / 2]);
        }
        outlet.finish();
        let mut seen = String::new();
        let mut part = [0; 65536];
        while !seen.contains("left out here") {
            let count = reader.read(&mut part).unwrap();
            seen.push_str(std::str::from_utf8(&part[..count]).unwrap());
        }
        outlet.write(b"again\n");
        while !seen.ends_with("again\n") {
            let count = reader.read(&mut part).unwrap();
            seen.push_str(std::str::from_utf8(&part[..count]).unwrap());
        }
    }

    #[test]
    fn one_that_is_gone_holds_up_nobody() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let outlet = Outlet::new(Ok(writer.into()));
        for _ in 0..4 {
            outlet.write(&vec![b'x'; MOST]);
        }
        outlet.finish();
    }
}
