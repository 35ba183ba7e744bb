//! What the writers and the readers of one journal share: the spool's end, the counts, and which
//! part is the server's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::clock::Clock;
use super::spool::{self, About, Left, Progress};
use super::tail::Tail;
use super::{Amount, Receipt};
use crate::mask::{Mask, Masker};
use crate::outlet;

/// How much is read by everybody before its space is given back to the file system.
const RELEASED_AT_ONCE: u64 = 8 * 1024 * 1024;

/// What must be free on a disk that was full before anything is kept there again.
const ROOM: u64 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Shared {
    path: PathBuf,
    mask: Mask,
    state: Mutex<State>,
    /// The state has changed: for the readers with a thread, and for the uploader.
    changed: Condvar,
    pub uploader_wake: Notify,
    /// Whether what cannot go through the spool goes to the terminal.
    has_terminal: bool,
}

#[derive(Debug)]
struct State {
    spool: File,
    /// Of what the job prints.
    masker: Masker,
    /// What came out of it, to be kept.
    masked: Vec<u8>,
    tail: Tail,
    clock: Clock,
    /// The end of the last whole record.
    end: u64,
    closed: bool,
    /// Newlines and bytes that came.
    produced: Amount,
    at_line_start: bool,
    /// What of `produced` lies before the server's part.
    before_part: Amount,
    upload_wanted: bool,
    about: About,
    kept_for_status: bool,
    progress: Progress,
    /// Of the states in the file.
    turn: u64,
    /// Those with a thread; the uploader's place is `progress.resume`.
    readers: Vec<Place>,
    /// Everything before this is given back to the file system.
    released: u64,
    /// The most that the spool may hold (bytes).
    limit: u64,
    /// What could not be kept since the last record that was.
    missing: Option<Missing>,
    /// All that could not be kept.
    all_missing: Amount,
}

/// How far a reader with a thread is.
#[derive(Debug)]
struct Place {
    offset: u64,
    /// A terminal that nobody looks at must not fill the disk.
    may_be_left_behind: bool,
    /// How much it has missed, where that has happened and it does not know yet.
    missed: u64,
}

/// Output that is not in the spool.
#[derive(Debug)]
struct Missing {
    amount: Amount,
    why: String,
}

/// What a reader sees when it looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub end: u64,
    pub closed: bool,
    /// Where the server's part begins, where that is decided: the set-up may still fail.
    pub part: Option<u64>,
}

/// A reader with a thread of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReaderId(usize);

impl Shared {
    pub fn new(
        spool: File,
        path: PathBuf,
        has_terminal: bool,
        setup_to_server: bool,
        limit: u64,
        mask: &Mask,
    ) -> Self {
        let progress = Progress {
            part: setup_to_server.then_some(spool::START),
            resume: spool::START,
            ..Progress::default()
        };
        Self::with(
            spool,
            path,
            has_terminal,
            progress,
            spool::START,
            limit,
            mask,
        )
    }

    /// A journal that an earlier run left: closed, and all of it for the server if that was not
    /// decided, since its run never got further.
    pub fn of_left(left: Left, path: PathBuf) -> (Self, Option<About>) {
        let Left {
            file,
            about,
            mut progress,
            end,
            amount,
        } = left;
        let part = *progress.part.get_or_insert(spool::START);
        progress.resume = progress.resume.max(part);
        let shared = Self::with(file, path, false, progress, end, u64::MAX, &Mask::default());
        {
            let mut state = shared.state();
            state.produced = progress.decided;
            state.produced.add(amount);
            state.released = progress.resume;
            state.upload_wanted = true;
            state.closed = true;
        }
        (shared, about)
    }

    fn with(
        spool: File,
        path: PathBuf,
        has_terminal: bool,
        progress: Progress,
        end: u64,
        limit: u64,
        mask: &Mask,
    ) -> Self {
        Self {
            path,
            mask: mask.clone(),
            state: Mutex::new(State {
                spool,
                masker: mask.masker(),
                masked: Vec::new(),
                tail: Tail::default(),
                clock: Clock::new(),
                end,
                closed: false,
                produced: Amount::default(),
                at_line_start: true,
                before_part: Amount::default(),
                upload_wanted: false,
                about: About::default(),
                kept_for_status: false,
                progress,
                turn: 0,
                readers: Vec::new(),
                released: spool::START,
                limit,
                missing: None,
                all_missing: Amount::default(),
            }),
            changed: Condvar::new(),
            uploader_wake: Notify::new(),
            has_terminal,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds output as it came, but for secrets.
    pub fn append(&self, bytes: &[u8]) {
        self.masked(|masker, masked| masker.push(bytes, masked));
    }

    /// Nothing has come for a while: what is no beginning of a secret is kept.
    pub fn pause(&self) {
        self.masked(Masker::flush);
    }

    /// Nothing more comes of this output.
    pub fn settle(&self) {
        self.masked(Masker::finish);
    }

    /// Keeps what `step` lets out.
    fn masked(&self, step: impl FnOnce(&mut Masker, &mut Vec<u8>)) {
        let mut state = self.state();
        let mut masked = std::mem::take(&mut state.masked);
        step(&mut state.masker, &mut masked);
        self.write(&mut state, &masked);
        state.tail.push(&masked);
        masked.clear();
        state.masked = masked;
        drop(state);
        self.wake();
    }

    /// Adds a line of the agent's own, on a line of its own.
    pub fn say(&self, line: &str) {
        let line = self.mask.mask(line);
        let line = line.as_str();
        self.pause();
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

    /// The last lines of what was printed, secrets masked.
    pub fn last_lines(&self) -> Vec<String> {
        self.state().tail.lines()
    }

    pub fn job_started(&self) {
        let mut state = self.state();
        if state.progress.part.is_none() {
            if !state.at_line_start {
                self.write(&mut state, b"\n");
            }
            state.progress.part = Some(state.end);
            state.progress.resume = state.end;
            state.before_part = state.produced;
            state.record_progress();
        }
        drop(state);
        self.wake();
    }

    pub fn release_setup(&self) {
        let mut state = self.state();
        if state.progress.part.is_none() {
            state.progress.part = Some(spool::START);
            state.record_progress();
        }
        drop(state);
        self.wake();
    }

    /// Changes what the file says of its run, so that others can go on after a crash.
    pub fn describe(&self, change: impl FnOnce(&mut About)) {
        let mut state = self.state();
        change(&mut state.about);
        if let Err(error) = spool::write_about(&state.spool, &state.about) {
            tracing::debug!(%error, "the journal does not say whose it is");
        }
    }

    /// The output is for a server.
    pub fn want_upload(&self) {
        let mut state = self.state();
        state.upload_wanted = true;
        state.record_progress();
    }

    /// The file stays, empty or not, until the final status is written.
    pub fn keep_for_status(&self, keep: bool) {
        self.state().kept_for_status = keep;
    }

    pub fn is_kept_for_status(&self) -> bool {
        self.state().kept_for_status
    }

    /// No server is to have it.
    pub fn abandon(&self) {
        self.state().upload_wanted = false;
    }

    /// Nothing more will come.
    pub fn close(&self) {
        let mut state = self.state();
        state.note_missing();
        state.closed = true;
        drop(state);
        self.wake();
    }

    pub fn view(&self) -> View {
        self.state().view()
    }

    pub fn progress(&self) -> Progress {
        self.state().progress
    }

    /// Milliseconds since the epoch, as the records have it.
    pub fn now(&self) -> u64 {
        self.state().clock.now()
    }

    pub fn add_reader(&self, may_be_left_behind: bool) -> ReaderId {
        let mut state = self.state();
        state.readers.push(Place {
            offset: spool::START,
            may_be_left_behind,
            missed: 0,
        });
        ReaderId(state.readers.len() - 1)
    }

    /// The reader has done with everything before `offset`, and waits until there is more, or
    /// nothing more will come.
    pub fn wait_for_more(&self, reader: ReaderId, offset: u64) -> View {
        let mut state = self.state();
        let place = &mut state.readers[reader.0];
        place.offset = place.offset.max(offset);
        state.release();
        let state = self
            .changed
            .wait_while(state, |s| s.end <= offset && !s.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.view()
    }

    /// The reader reads no more.
    pub fn reader_is_gone(&self, reader: ReaderId) {
        self.state().readers[reader.0].offset = u64::MAX;
    }

    /// The reader has read on to `offset`. Where it was left behind: how much it has missed, and where it is
    /// to go on. What it has read last is then not to be trusted.
    pub fn was_left_behind(&self, reader: ReaderId, offset: u64) -> Option<(u64, u64)> {
        let place = &mut self.state().readers[reader.0];
        let missed = std::mem::take(&mut place.missed);
        if missed > 0 {
            return Some((missed, place.offset));
        }
        place.offset = offset;
        None
    }

    /// How far the readers are, in all.
    pub fn read_by_all(&self) -> u64 {
        let state = self.state();
        // Those that read no more are at the end of everything.
        let offsets = state
            .readers
            .iter()
            .map(|place| place.offset.min(state.end));
        offsets.sum()
    }

    /// The server has decided on this: it has taken all but `refused`. `resume` and `skip` say where
    /// the rest begins, `last_time` is the time of the last event that was sent.
    pub fn decided(&self, amount: Amount, refused: Amount, resume: u64, skip: u64, last_time: u64) {
        let mut state = self.state();
        let progress = &mut state.progress;
        progress.decided.add(amount);
        progress.refused.add(refused);
        progress.resume = resume;
        progress.skip = skip;
        progress.last_time = last_time;
        state.record_progress();
        state.release();
    }

    pub fn receipt(&self) -> Receipt {
        let state = self.state();
        let mut produced = state.produced;
        if !state.at_line_start {
            produced.lines += 1;
        }
        let wanted = match state.progress.part {
            Some(_) if state.upload_wanted => produced.less(state.before_part),
            _ => Amount::default(),
        };
        let decided = state.progress.decided;
        // What was never in the spool is not to be had there either.
        let undecided = state.upload_wanted
            && state
                .progress
                .part
                .is_some_and(|_| state.progress.resume < state.end);
        Receipt {
            produced,
            wanted,
            accepted: decided.less(state.progress.refused),
            refused: state.progress.refused,
            missing: state.all_missing,
            spool: undecided.then(|| self.path.clone()),
        }
    }

    fn write(&self, state: &mut State, bytes: &[u8]) {
        if state.closed {
            self.straight_to_terminal(bytes);
            return;
        }
        for part in bytes.chunks(spool::MOST_IN_A_RECORD) {
            let amount = Amount::of(part);
            state.produced.add(amount);
            if state.missing.is_some() && state.has_room() {
                state.note_missing();
            }
            if let Some(missing) = &mut state.missing {
                missing.amount.add(amount);
                state.all_missing.add(amount);
                self.straight_to_terminal(part);
                continue;
            }
            match state.keep(part) {
                Ok(()) => state.at_line_start = part.ends_with(b"\n"),
                Err(why) => {
                    let complaint = format!(
                        "\nclearml-agent: the output is not kept for now: {why}. It goes to the \
                         terminal alone\n"
                    );
                    self.straight_to_terminal(complaint.as_bytes());
                    self.straight_to_terminal(part);
                    state.missing = Some(Missing { amount, why });
                    state.all_missing.add(amount);
                }
            }
        }
    }

    fn straight_to_terminal(&self, bytes: &[u8]) {
        if self.has_terminal {
            outlet::stdout().write(bytes);
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
            part: self.progress.part,
        }
    }

    /// Where output could not be kept, and now can, the log says what is missing there.
    fn note_missing(&mut self) {
        let Some(missing) = self.missing.take() else {
            return;
        };
        let is = if missing.amount.lines == 1 {
            "is"
        } else {
            "are"
        };
        let notice = format!(
            "{}[clearml-agent: {} of output {is} missing here: {}]\n",
            if self.at_line_start { "" } else { "\n" },
            missing.amount,
            missing.why
        );
        match self.keep(notice.as_bytes()) {
            Ok(()) => {
                self.produced.add(Amount::of(notice.as_bytes()));
                self.at_line_start = true;
            }
            Err(_) => self.missing = Some(missing),
        }
    }

    /// Whether so much can be kept again that a gap is not followed by the next one at once.
    fn has_room(&mut self) -> bool {
        self.release();
        let waiting = self.end - self.released;
        let on_disk = rustix::fs::fstatvfs(&self.spool);
        waiting <= self.limit / 4 * 3 && on_disk.is_ok_and(|s| s.f_bavail * s.f_frsize >= ROOM)
    }

    /// Puts a record into the spool, or says why not.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.end - self.released > self.limit {
            self.leave_behind();
            self.release();
        }
        if self.end - self.released > self.limit {
            return Err(format!(
                "{} MiB of it wait for the server already (agent.journal.max_size_mb)",
                self.limit / (1024 * 1024)
            ));
        }
        let time = self.clock.now();
        match spool::write(&self.spool, self.end, time, bytes) {
            Ok(end) => {
                self.end = end;
                Ok(())
            }
            Err(error) => Err(format!("the journal cannot be written: {error}")),
        }
    }

    /// There is no room: who has not read half of what there is, and need not, is done with it.
    fn leave_behind(&mut self) {
        let (end, half) = (self.end, self.limit / 2);
        for place in &mut self.readers {
            if place.may_be_left_behind && place.offset < end.saturating_sub(half) {
                place.missed += end - place.offset;
                place.offset = end;
            }
        }
    }

    /// Gives back the space of what everybody is done with.
    fn release(&mut self) {
        let places = self.readers.iter().map(|place| place.offset);
        let mut done = places.min().unwrap_or(self.end);
        if self.upload_wanted || self.progress.part.is_none() {
            done = done.min(self.progress.resume);
        }
        let done = done.min(self.end);
        if done < self.released + RELEASED_AT_ONCE.min(self.limit / 4) {
            return;
        }
        if let Err(error) = spool::release(&self.spool, self.released, done) {
            // A file system that cannot: the file is removed at the end.
            tracing::debug!(%error, "the journal's space is not given back");
        }
        self.released = done;
    }

    fn record_progress(&mut self) {
        self.turn += 1;
        if let Err(error) = spool::write_progress(&self.spool, self.turn, &self.progress) {
            tracing::debug!(%error, "the journal's progress is not recorded");
        }
    }
}
