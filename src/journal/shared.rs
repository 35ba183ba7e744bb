//! What the writers and the readers of one journal share: the spool's end, the counts, and which
//! part is the server's.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use super::{Amount, Receipt, spool};

#[derive(Debug)]
pub(super) struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// The state has changed: for the readers with a thread, and for the uploader.
    changed: Condvar,
    pub uploader_wake: Notify,
    /// The terminal, for what cannot go through the spool.
    fallback: Option<File>,
}

#[derive(Debug)]
struct State {
    spool: File,
    /// The end of the last whole record.
    end: u64,
    closed: bool,
    part: ServerPart,
    /// Newlines and bytes that came.
    produced: Amount,
    at_line_start: bool,
    /// What of `produced` lies before the server's part.
    before_part: Amount,
    upload_wanted: bool,
    accepted: Amount,
    spool_failed: bool,
}

/// Which part of the spool is for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerPart {
    /// Not decided: the set-up may still fail.
    Undecided,
    From(u64),
}

/// What a reader sees when it looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub end: u64,
    pub closed: bool,
    pub part: ServerPart,
}

impl Shared {
    pub fn new(spool: File, path: PathBuf, fallback: Option<File>, setup_to_server: bool) -> Self {
        Self {
            path,
            state: Mutex::new(State {
                spool,
                end: 0,
                closed: false,
                part: if setup_to_server {
                    ServerPart::From(0)
                } else {
                    ServerPart::Undecided
                },
                produced: Amount::default(),
                at_line_start: true,
                before_part: Amount::default(),
                upload_wanted: false,
                accepted: Amount::default(),
                spool_failed: false,
            }),
            changed: Condvar::new(),
            uploader_wake: Notify::new(),
            fallback,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds output as it came.
    pub fn append(&self, bytes: &[u8]) {
        self.write(&mut self.state(), bytes);
        self.wake();
    }

    /// Adds a line of the agent's own, on a line of its own.
    pub fn say(&self, line: &str) {
        let mut state = self.state();
        let mut text = String::with_capacity(line.len() + 2);
        if !state.at_line_start {
            text.push('\n');
        }
        text.push_str(line);
        text.push('\n');
        self.write(&mut state, text.as_bytes());
        drop(state);
        self.wake();
    }

    pub fn job_started(&self) {
        let mut state = self.state();
        if state.part == ServerPart::Undecided {
            if !state.at_line_start {
                self.write(&mut state, b"\n");
            }
            state.part = ServerPart::From(state.end);
            state.before_part = state.produced;
        }
        drop(state);
        self.wake();
    }

    pub fn release_setup(&self) {
        let mut state = self.state();
        if state.part == ServerPart::Undecided {
            state.part = ServerPart::From(0);
        }
        drop(state);
        self.wake();
    }

    pub fn want_upload(&self) {
        self.state().upload_wanted = true;
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.state().closed = true;
        self.wake();
    }

    pub fn view(&self) -> View {
        self.state().view()
    }

    /// Waits until there is more than `offset`, or nothing more will come.
    pub fn wait_for_more(&self, offset: u64) -> View {
        let state = self
            .changed
            .wait_while(self.state(), |s| s.end <= offset && !s.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.view()
    }

    /// The server has taken this.
    pub fn accepted(&self, amount: Amount) {
        self.state().accepted.add(amount);
    }

    pub fn receipt(&self) -> Receipt {
        let state = self.state();
        let mut produced = state.produced;
        if !state.at_line_start {
            produced.lines += 1;
        }
        let wanted = match state.part {
            ServerPart::From(_) if state.upload_wanted => Amount {
                lines: produced.lines - state.before_part.lines,
                bytes: produced.bytes - state.before_part.bytes,
            },
            _ => Amount::default(),
        };
        let all_there = state.accepted.bytes >= wanted.bytes;
        Receipt {
            produced,
            wanted,
            accepted: state.accepted,
            spool: (!all_there).then(|| self.path.clone()),
        }
    }

    fn write(&self, state: &mut State, bytes: &[u8]) {
        if state.closed {
            self.straight_to_terminal(bytes);
            return;
        }
        for part in bytes.chunks(spool::MOST_IN_A_RECORD) {
            state.produced.add(Amount::of(part));
            state.at_line_start = part.ends_with(b"\n");
            match spool::write(&state.spool, state.end, now(), part) {
                Ok(end) => state.end = end,
                Err(error) => {
                    if !std::mem::replace(&mut state.spool_failed, true) {
                        let complaint = format!(
                            "\nCannot keep the output in {}: {error}. Until that works again, it is \
                             on the terminal alone\n",
                            self.path.display()
                        );
                        self.straight_to_terminal(complaint.as_bytes());
                    }
                    self.straight_to_terminal(part);
                }
            }
        }
    }

    fn straight_to_terminal(&self, bytes: &[u8]) {
        if let Some(mut terminal) = self.fallback.as_ref() {
            // There is nobody left to tell.
            let _ = terminal.write_all(bytes);
        }
    }

    fn wake(&self) {
        self.changed.notify_all();
        self.uploader_wake.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn view(&self) -> View {
        View {
            end: self.end,
            closed: self.closed,
            part: self.part,
        }
    }
}

impl Amount {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            lines: bytes.iter().filter(|b| **b == b'\n').count() as u64,
            bytes: bytes.len() as u64,
        }
    }

    pub(super) fn add(&mut self, other: Amount) {
        self.lines += other.lines;
        self.bytes += other.bytes;
    }
}

/// Milliseconds since the epoch.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
