//! The server's reader of the spool: reads, packs, sends, and sends again until it is taken.
//!
//! Nothing is given up because the server is away: the spool holds it, and what was not answered is
//! sent again. The API gives a log event a new id at each arrival, so a packet whose answer was lost
//! on the way is on the server twice; that is preferred to a gap. Only what the server understood
//! and refused is left out: the packet is halved until the refused event is alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Amount;
use super::batch::{self, Batch, Line};
use super::frames::Frames;
use super::position::Position;
use super::shared::{Shared, View};
use super::spool::{Progress, Reader};
use crate::api::events::Added;
use crate::api::{ApiError, Session, events};

/// Where the log goes.
#[derive(Debug, Clone)]
pub struct Upload {
    pub session: Arc<Session>,
    pub task: String,
    pub worker: String,
    /// Before each piece of the log: which of several ranks it is from. Mostly empty.
    pub mark: String,
}

/// The least time between the beginnings of two sends, unless there is a packet's worth.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the first line after a pause waits for its fellows.
const GATHER: Duration = Duration::from_millis(200);
/// The pause after a failed send grows up to this; each send is itself some seconds of tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// How many bytes of the spool are read between two looks at the batch.
const ONE_STEP: usize = 1024 * 1024;

/// Sends the server's part of the journal until all of it is decided on and no more will come.
pub(super) async fn run(shared: Arc<Shared>, upload: Upload, fold: bool) {
    if !server_part_begins(&shared).await {
        return;
    }
    let begin = shared.progress();
    let mut uploader = Uploader {
        position: Position::after(&begin),
        shared,
        upload,
        told: Told::default(),
    };
    if let Err(error) = uploader.follow(&begin, fold).await {
        uploader.shared.say(&format!(
            "Cannot read back the output from {}: {error}. The server gets no more of it",
            uploader.shared.path().display()
        ));
    }
}

struct Uploader {
    shared: Arc<Shared>,
    upload: Upload,
    position: Position,
    told: Told,
}

/// What the user has been told once.
#[derive(Default)]
struct Told {
    refusal: bool,
    outage: bool,
}

impl Uploader {
    async fn follow(&mut self, begin: &Progress, fold: bool) -> std::io::Result<()> {
        let mut reader = Reader::open(self.shared.path())?;
        reader.skip_to(begin.resume);
        let mut frames = Frames::new(fold);
        let mut batch = Batch::after(begin.last_time);
        let mut last_send: Option<Instant> = None;
        let mut gathering_since: Option<Instant> = None;
        loop {
            let view = self.shared.view();
            let now = self.shared.now();
            let mut input = Input {
                reader: &mut reader,
                position: &mut self.position,
                frames: &mut frames,
            };
            let all_read = input.fill(&mut batch, view, now)?;
            self.decided(batch.take_without_text(), Amount::default(), None);
            if batch.is_empty() {
                if all_read && view.closed {
                    return Ok(());
                }
                gathering_since = None;
            } else if gathering_since.is_none() {
                gathering_since = Some(Instant::now());
            }
            let send_at = gathering_since.map(|since| {
                let gathered = since + GATHER;
                last_send.map_or(gathered, |last| gathered.max(last + INTERVAL))
            });
            if send_at.is_some_and(|at| batch.is_full() || view.closed || at <= Instant::now()) {
                last_send = Some(Instant::now());
                gathering_since = None;
                let Upload {
                    task, worker, mark, ..
                } = &self.upload;
                let packet = batch.take_packet(task, worker, mark);
                self.deliver(packet).await;
                continue;
            }
            if !all_read {
                tokio::task::yield_now().await;
                continue;
            }
            let flush_at = frames
                .flush_at()
                .map(|at| Instant::now() + Duration::from_millis(at.saturating_sub(now)));
            wait_until(&self.shared, send_at.into_iter().chain(flush_at).min()).await;
        }
    }

    /// The server took `amount`, all but `refused`; `last` was the time of its last event.
    fn decided(&mut self, amount: Amount, refused: Amount, last: Option<u64>) {
        if amount == Amount::default() {
            return;
        }
        let (resume, skip) = self.position.decided(amount.bytes);
        let last_time = last.unwrap_or_else(|| self.shared.progress().last_time);
        self.shared
            .decided(amount, refused, resume, skip, last_time);
    }

    /// Sends until every event is taken or refused.
    async fn deliver(&mut self, packet: Vec<Line>) {
        let mut parts = vec![packet];
        while let Some(mut part) = parts.pop() {
            let Some(last) = part.last().map(|line| line.time) else {
                continue;
            };
            match self.send(&part).await {
                Answer::Taken { refused } => {
                    let amount = total(&part);
                    let refused_amount = share(refused, part.len() as u64, amount);
                    self.decided(amount, refused_amount, Some(last));
                    if refused > 0 {
                        self.tell_refusal("it says no more than that");
                    }
                }
                Answer::Refused(_) if part.len() > 1 => {
                    let second = part.split_off(part.len() / 2);
                    parts.push(second);
                    parts.push(part);
                }
                Answer::Refused(why) => {
                    self.decided(total(&part), total(&part), Some(last));
                    self.tell_refusal(&why);
                }
                // `send` does not come back with this.
                Answer::NotTaken(_) => parts.push(part),
            }
        }
    }

    /// Sends one part until the server has decided on it.
    async fn send(&mut self, part: &[Line]) -> Answer {
        let mut pause = Duration::from_millis(500);
        loop {
            let result = events::add_batch(&self.upload.session, batch::body(part)).await;
            let answer = answer(result);
            let Answer::NotTaken(cause) = answer else {
                if std::mem::take(&mut self.told.outage) {
                    self.shared.say("The server takes the log again");
                }
                return answer;
            };
            if !std::mem::replace(&mut self.told.outage, true) {
                self.shared.say(&format!(
                    "The server does not take the log now: {cause}. The run goes on; the log is \
                     kept and sent later"
                ));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn tell_refusal(&mut self, why: &str) {
        if !std::mem::replace(&mut self.told.refusal, true) {
            self.shared.say(&format!(
                "The server refused a part of the log: {why}. It is left out there (said once)"
            ));
        }
    }
}

/// Waits until it is known which part the server gets; `false`: none.
async fn server_part_begins(shared: &Shared) -> bool {
    loop {
        match shared.view() {
            View { part: Some(_), .. } => return true,
            View { closed: true, .. } => return false,
            _ => wait_until(shared, None).await,
        }
    }
}

/// Waits for news, until `at` at most.
async fn wait_until(shared: &Shared, at: Option<Instant>) {
    let news = shared.uploader_wake.notified();
    match at {
        // Passed or not: `timeout_at` says it either way.
        Some(at) => {
            let _ = tokio::time::timeout_at(at, news).await;
        }
        None => news.await,
    }
}

/// From the spool to text.
struct Input<'a> {
    reader: &'a mut Reader,
    position: &'a mut Position,
    frames: &'a mut Frames,
}

impl Input<'_> {
    /// Reads on until there is a packet's worth or no more; whether all was read.
    fn fill(&mut self, batch: &mut Batch, view: View, now: u64) -> std::io::Result<bool> {
        // What is read is in memory: a packet's worth, and a step more.
        if batch.is_full() {
            return Ok(false);
        }
        let mut out = |text: &str, time, amount| batch.add(text, time, amount);
        let mut budget = ONE_STEP;
        while let Some(record) = self.reader.next(view.end)? {
            let known = self.position.read(record.bytes.len(), record.end);
            self.frames
                .push(record.time, &record.bytes[known..], &mut out);
            budget = budget.saturating_sub(record.bytes.len());
            if budget == 0 {
                return Ok(false);
            }
        }
        if view.closed {
            self.frames.finish(&mut out);
        } else {
            self.frames.flush(now, &mut out);
        }
        Ok(true)
    }
}

/// What an answer means for the events.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// All but `refused` of them are on the server.
    Taken { refused: u64 },
    /// None is, and none will be.
    Refused(String),
    /// None is, as far as can be told.
    NotTaken(String),
}

fn answer(result: Result<Added, ApiError>) -> Answer {
    match result {
        Ok(Added { errors, .. }) => Answer::Taken { refused: errors },
        // The server said yes, if in a way that is not understood: again would be twice.
        Err(ApiError::UnexpectedAnswer { .. }) => Answer::Taken { refused: 0 },
        Err(ref error @ ApiError::Refused { code, .. }) if (400..500).contains(&code) => {
            Answer::Refused(error.to_string())
        }
        Err(error) => Answer::NotTaken(error.to_string()),
    }
}

fn total(lines: &[Line]) -> Amount {
    let mut amount = Amount::default();
    for line in lines {
        amount.add(line.amount);
    }
    amount
}

/// The server says how many events it refused, not which: the amount is in proportion.
fn share(refused: u64, of: u64, amount: Amount) -> Amount {
    let part = |whole: u64| (whole * refused.min(of)).div_ceil(of.max(1));
    Amount {
        lines: part(amount.lines),
        bytes: part(amount.bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::spool;
    use super::*;

    fn refused(code: u16) -> ApiError {
        ApiError::Refused {
            endpoint: "events.add_batch",
            code,
            subcode: 131,
            message: "Events not added".into(),
        }
    }

    #[test]
    fn what_an_answer_means() {
        let added = |added, errors| Ok(Added { added, errors });
        assert_eq!(answer(added(3, 0)), Answer::Taken { refused: 0 });
        assert_eq!(answer(added(2, 1)), Answer::Taken { refused: 1 });
        for code in [400, 403, 413] {
            assert!(matches!(answer(Err(refused(code))), Answer::Refused(_)));
        }
        for error in [
            refused(501),
            ApiError::Unauthorized {
                host: "h".into(),
                message: "m".into(),
            },
            ApiError::NotAnApiServer {
                host: "h".into(),
                endpoint: "events.add_batch",
                found: "HTTP 502 and a web page".into(),
            },
            ApiError::Unreachable {
                host: "h".into(),
                cause: "c".into(),
                tries: 4,
                waited: Duration::from_secs(15),
            },
        ] {
            assert!(matches!(answer(Err(error)), Answer::NotTaken(_)));
        }
        let unread = ApiError::UnexpectedAnswer {
            endpoint: "events.add_batch",
            cause: "c".into(),
        };
        assert_eq!(answer(Err(unread)), Answer::Taken { refused: 0 });
    }

    #[test]
    fn no_more_is_read_than_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let (file, path) = spool::create(dir.path(), "h").unwrap();
        // Six times as long in the packet as in the spool.
        let record = [b"\x01".repeat(999), b"\n".to_vec()].concat();
        let mut end = spool::START;
        for _ in 0..8_000 {
            end = spool::write(&file, end, 1, &record).unwrap();
        }
        let view = View {
            end,
            closed: true,
            part: Some(spool::START),
        };
        let mut reader = Reader::open(&path).unwrap();
        let (mut frames, mut batch) = (Frames::new(true), Batch::default());
        let mut position = Position::after(&spool::Progress::default());
        let mut sent = Amount::default();
        loop {
            let mut input = Input {
                reader: &mut reader,
                position: &mut position,
                frames: &mut frames,
            };
            let all_read = input.fill(&mut batch, view, 1).unwrap();
            let packet = batch.take_packet("t", "w", "");
            if all_read && packet.is_empty() {
                break;
            }
            sent.add(total(&packet));
            assert!(reader.offset() - sent.bytes < 3 * ONE_STEP as u64);
        }
        assert_eq!((sent.lines, sent.bytes), (8_000, 8_000_000));
    }

    #[test]
    fn refused_events_are_counted_in_proportion() {
        let amount = Amount {
            lines: 10,
            bytes: 1_000,
        };
        for (refused, lines, bytes) in [(0, 0, 0), (4, 10, 1_000), (9, 10, 1_000), (1, 3, 250)] {
            assert_eq!(share(refused, 4, amount), Amount { lines, bytes });
        }
    }
}
