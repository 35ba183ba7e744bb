//! The spool file: a page of state, then records of output, each with the time it came.
//!
//! The page says whose output it is, and has two places for the state, written in turn, each with a
//! checksum: whatever moment a crash chooses, one of them is whole. A record is the time
//! (milliseconds since the epoch, 8 bytes), the length (4 bytes), both little endian, then the
//! bytes. A record that a crash cut short is no record. Records that all readers are done with are
//! given back to the file system as a hole.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Amount;
use crate::api::tasks::FinalStatus;

pub(super) const MOST_IN_A_RECORD: usize = 64 * 1024;
/// What finished journals and those that are being written are called.
const PREFIX: &str = "output-";
const SUFFIX: &str = ".journal";
/// Where the records begin.
pub(super) const START: u64 = 4096;
const HEADER: usize = 12;
/// Room for one whole record and many small ones.
const BUFFER: usize = 2 * (MOST_IN_A_RECORD + HEADER);

const MAGIC: &[u8; 16] = b"clearml-journal1";
const STATES: [u64; 2] = [256, 512];
const STATE_LENGTH: usize = 10 * 8;
const ABOUT: u64 = 1024;
const LONGEST_ABOUT: usize = (START - ABOUT) as usize - 4;

/// Whose output it is: what is needed to send it, and to tell how its run ended, without that run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// The API server's address.
    pub server: String,
    pub task: String,
    pub worker: String,
    /// The machine that the run was on.
    pub machine: String,
    /// Whether lines that are drawn over are folded.
    pub fold: bool,
    /// Whether the server is to have the output.
    pub log: bool,
    /// What stands before each piece of it there.
    #[serde(default)]
    pub mark: String,
    /// The claim by which the run holds the task.
    #[serde(default)]
    pub claim: Option<String>,
    /// Whether it is a job that its batch system may start again.
    #[serde(default)]
    pub comes_back: bool,
    /// The worker that had reported on the task before.
    #[serde(default)]
    pub former_worker: Option<String>,
    /// The final status, where that is known and perhaps not written yet.
    #[serde(default)]
    pub ending: Option<Ending>,
}

/// A task's final status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    pub status: FinalStatus,
    pub reason: String,
}

impl Ending {
    /// One that fits the page, whatever it is about.
    pub(super) fn shortened(&self) -> Ending {
        const LONGEST: usize = 250;
        let reason = match self.reason.char_indices().nth(LONGEST) {
            Some((cut, _)) => format!("{}…", &self.reason[..cut]),
            None => self.reason.clone(),
        };
        Ending {
            status: self.status,
            reason,
        }
    }
}

/// How far the server is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Where the server's part begins; `None`: not decided.
    pub part: Option<u64>,
    /// A record at or before the first byte that the server has not decided on.
    pub resume: u64,
    /// What of that record, and of those that follow, it has decided on already.
    pub skip: u64,
    /// What it has decided on, all in all: taken or refused.
    pub decided: Amount,
    /// What of `decided` it refused.
    pub refused: Amount,
    /// The time of the last event that it was sent.
    pub last_time: u64,
}

/// A new spool file in `dir`, for this user alone, locked for as long as it is open. `machine` is a
/// part of its name.
pub(super) fn create(dir: &Path, machine: &str) -> io::Result<(File, PathBuf)> {
    let prefix = prefix(machine);
    let new = tempfile::Builder::new()
        .prefix(&format!(".new-{prefix}"))
        .tempfile_in(dir)?;
    new.as_file().write_all_at(MAGIC, 0)?;
    new.as_file().set_len(START)?;
    // Only a file that is locked gets a name by which it can be found.
    new.as_file().lock()?;
    let random = new.path().file_name().unwrap_or_default();
    let random = random
        .to_string_lossy()
        .replace(&format!(".new-{prefix}"), "");
    let path = dir.join(format!("{prefix}{random}{SUFFIX}"));
    let file = new.persist_noclobber(&path).map_err(|e| e.error)?;
    Ok((file, path))
}

fn prefix(machine: &str) -> String {
    let machine: String = machine
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    format!("{PREFIX}{machine}-")
}

/// The journals in `dir`, oldest first: those of `machine`, or of all.
pub(super) fn list(dir: &Path, machine: Option<&str>) -> io::Result<Vec<PathBuf>> {
    let prefix = machine.map_or_else(|| PREFIX.to_owned(), prefix);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(SUFFIX) {
            let changed = entry.metadata().and_then(|m| m.modified()).ok();
            found.push((changed, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The journal in `dir` of the run with this `claim`, if it is not held: neither by that run, nor by one that
/// sends what it left.
pub(super) fn left_by(dir: &Path, machine: &str, claim: &str) -> Option<(PathBuf, About)> {
    let paths = list(dir, Some(machine)).unwrap_or_default();
    paths.into_iter().find_map(|path| {
        let file = File::open(&path).ok()?;
        let about = read_about(&file).ok().flatten()?;
        let is_left = about.claim.as_deref() == Some(claim) && file.try_lock_shared().is_ok();
        is_left.then_some((path, about))
    })
}

/// A journal that an earlier run left.
#[derive(Debug)]
pub(super) struct Left {
    /// Locked.
    pub file: File,
    /// `None`: that run sent nothing to a server.
    pub about: Option<About>,
    pub progress: Progress,
    /// The end of the last whole record.
    pub end: u64,
    /// All output that the server has not decided on.
    pub amount: Amount,
}

/// Opens a journal that nobody writes or sends any more; `None`: somebody does, or has just
/// finished with it.
pub(super) fn open_left(path: &Path) -> io::Result<Option<Left>> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
        Err(std::fs::TryLockError::Error(error)) => return Err(error),
    }
    // Sent and removed by somebody between the opening and the locking.
    if file.metadata()?.nlink() == 0 {
        return Ok(None);
    }
    let mut magic = [0; MAGIC.len()];
    (&file).read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not a journal of this version of the agent",
        ));
    }
    let about = read_about(&file)?;
    let progress = read_progress(&file)?;
    let (end, amount) = whole_records(path, progress.resume.max(START), progress.skip)?;
    Ok(Some(Left {
        file,
        about,
        progress,
        end,
        amount,
    }))
}

/// The end of the last whole record, and all the output from `from` on, but for the first `skip`
/// bytes.
fn whole_records(path: &Path, from: u64, skip: u64) -> io::Result<(u64, Amount)> {
    let mut reader = Reader::open(path)?;
    reader.skip_to(from);
    let length = std::fs::metadata(path)?.len();
    let mut amount = Amount::default();
    let mut at_line_start = true;
    let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
    loop {
        let end = reader.offset();
        match reader.next(length) {
            Ok(Some(record)) => {
                let bytes = &record.bytes[skip.min(record.bytes.len())..];
                skip -= record.bytes.len() - bytes.len();
                amount.add(Amount::of(bytes));
                at_line_start = record.bytes.ends_with(b"\n");
            }
            // All was read, or what follows was cut short or never written.
            Ok(None) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
                ) => {}
            Err(error) => return Err(error),
        }
        if reader.offset() == end {
            amount.lines += u64::from(!at_line_start && amount.bytes > 0);
            return Ok((end, amount));
        }
    }
}

pub(super) fn write_about(file: &File, about: &About) -> io::Result<()> {
    let json = serde_json::to_vec(about)?;
    if json.len() > LONGEST_ABOUT {
        return Err(io::Error::other(
            "the names of task, server and worker are too long",
        ));
    }
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    // In one step: it is written over while others may find it after a kill.
    let page = [&length.to_le_bytes(), json.as_slice()].concat();
    file.write_all_at(&page, ABOUT)
}

fn read_about(file: &File) -> io::Result<Option<About>> {
    let mut length = [0; 4];
    file.read_exact_at(&mut length, ABOUT)?;
    let length = u32::from_le_bytes(length) as usize;
    if length == 0 || length > LONGEST_ABOUT {
        return Ok(None);
    }
    let mut json = vec![0; length];
    file.read_exact_at(&mut json, ABOUT + 4)?;
    Ok(serde_json::from_slice(&json).ok())
}

/// Records `progress` as the `turn`th state of the file. It overwrites what is there, so it needs no
/// space on a full disk.
pub(super) fn write_progress(file: &File, turn: u64, progress: &Progress) -> io::Result<()> {
    let numbers = [
        turn,
        progress.part.unwrap_or(u64::MAX),
        progress.resume,
        progress.skip,
        progress.decided.lines,
        progress.decided.bytes,
        progress.refused.lines,
        progress.refused.bytes,
        progress.last_time,
    ];
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    bytes.extend(checksum(&bytes).to_le_bytes());
    file.write_all_at(&bytes, STATES[(turn % 2) as usize])
}

fn read_progress(file: &File) -> io::Result<Progress> {
    let mut newest = None;
    for place in STATES {
        let mut bytes = [0; STATE_LENGTH];
        file.read_exact_at(&mut bytes, place)?;
        let mut numbers = [0; STATE_LENGTH / 8];
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
            *number = u64::from_le_bytes(fixed(bytes)?);
        }
        let [turn, .., sum] = numbers;
        if turn > 0 && sum == checksum(&bytes[..STATE_LENGTH - 8]) {
            newest = newest.max(Some(numbers));
        }
    }
    let Some(numbers) = newest else {
        return Ok(Progress::default());
    };
    let amount = |at: usize| Amount {
        lines: numbers[at],
        bytes: numbers[at + 1],
    };
    Ok(Progress {
        part: Some(numbers[1]).filter(|part| *part != u64::MAX),
        resume: numbers[2],
        skip: numbers[3],
        decided: amount(4),
        refused: amount(6),
        last_time: numbers[8],
    })
}

/// FNV-1a: it has to notice half-written states, nothing cleverer.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Writes a record at `offset`; gives the offset after it. `bytes` is at most a record's.
pub(super) fn write(file: &File, offset: u64, time: u64, bytes: &[u8]) -> io::Result<u64> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut record = Vec::with_capacity(HEADER + bytes.len());
    record.extend(time.to_le_bytes());
    record.extend(length.to_le_bytes());
    record.extend(bytes);
    file.write_all_at(&record, offset)?;
    Ok(offset + record.len() as u64)
}

/// Gives the space of the records in `from..to` back.
pub(super) fn release(file: &File, from: u64, to: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, hole, from, to - from)?;
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub time: u64,
    pub bytes: &'a [u8],
    /// Where the next one starts.
    pub end: u64,
}

/// Reads a spool from an offset on, while it grows.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    /// Where the next record starts.
    offset: u64,
    /// Bytes of the file from `offset - used` on.
    buffer: Vec<u8>,
    used: usize,
}

impl Reader {
    /// At the first record.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            offset: START,
            buffer: Vec::new(),
            used: 0,
        })
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn skip_to(&mut self, offset: u64) {
        self.offset = offset;
        self.buffer.clear();
        self.used = 0;
    }

    /// The next record that lies before `end`, which must be the end of a record.
    pub fn next(&mut self, end: u64) -> io::Result<Option<Record<'_>>> {
        if self.offset >= end {
            return Ok(None);
        }
        self.have(HEADER, end)?;
        let header = &self.buffer[self.used..];
        let time = u64::from_le_bytes(fixed(&header[..8])?);
        let length = u32::from_le_bytes(fixed(&header[8..HEADER])?) as usize;
        // An empty record is none that was written: a hole reads so.
        if length == 0 || length > MOST_IN_A_RECORD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.have(HEADER + length, end)?;
        let start = self.used + HEADER;
        self.used = start + length;
        self.offset += (HEADER + length) as u64;
        Ok(Some(Record {
            time,
            bytes: &self.buffer[start..start + length],
            end: self.offset,
        }))
    }

    /// Sees to it that the next `wanted` bytes are in the buffer.
    fn have(&mut self, wanted: usize, end: u64) -> io::Result<()> {
        if self.buffer.len() - self.used >= wanted {
            return Ok(());
        }
        self.buffer.drain(..self.used);
        self.used = 0;
        let kept = self.buffer.len();
        let from = self.offset + kept as u64;
        let more = usize::try_from(end.saturating_sub(from))
            .unwrap_or(usize::MAX)
            .min(BUFFER - kept);
        self.buffer.resize(kept + more, 0);
        self.file.read_exact_at(&mut self.buffer[kept..], from)?;
        if self.buffer.len() < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> io::Result<[u8; N]> {
    bytes
        .try_into()
        .map_err(|_| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn about() -> About {
        About {
            server: "http://h:8008".into(),
            task: "t1".into(),
            worker: "h:1".into(),
            machine: "h".into(),
            fold: true,
            log: true,
            mark: String::new(),
            claim: Some("c".into()),
            former_worker: None,
            comes_back: false,
            ending: Some(Ending {
                status: FinalStatus::Failed,
                // As long as it may be, and all of it escaped or wide.
                reason: format!("{}{}", "\u{1}".repeat(200), "\u{1F600}".repeat(2000)),
            })
            .map(|ending| ending.shortened()),
        }
    }

    #[test]
    fn what_is_written_is_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (file, path) = create(dir.path(), "h").unwrap();
        let texts: Vec<Vec<u8>> = [1, 7, MOST_IN_A_RECORD, 3, MOST_IN_A_RECORD, 60_000, 9]
            .iter()
            .map(|n| vec![b'a' + (*n % 26) as u8; *n])
            .collect();
        let mut end = START;
        for (time, text) in texts.iter().enumerate() {
            end = write(&file, end, time as u64, text).unwrap();
        }
        let mut reader = Reader::open(&path).unwrap();
        for (time, text) in texts.iter().enumerate() {
            let record = reader.next(end).unwrap().unwrap();
            assert_eq!((record.time, record.bytes), (time as u64, &text[..]));
        }
        assert_eq!(reader.next(end).unwrap(), None);
        assert_eq!(reader.offset(), end);
        let more = write(&file, end, 99, b"more").unwrap();
        assert_eq!(reader.next(more).unwrap().unwrap().bytes, b"more");
        reader.skip_to(end);
        assert_eq!(reader.next(more).unwrap().unwrap().time, 99);
    }

    #[test]
    fn the_spool_is_private_and_held_by_its_maker() {
        let dir = tempfile::tempdir().unwrap();
        let (file, path) = create(dir.path(), "node.example-1").unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(open_left(&path).unwrap().is_none());
        drop(file);
        let held = open_left(&path).unwrap().unwrap();
        assert!(open_left(&path).unwrap().is_none());
        drop(held);
        assert_eq!(list(dir.path(), None).unwrap(), [&*path]);
        assert_eq!(list(dir.path(), Some("node.example-1")).unwrap(), [path]);
        assert!(list(dir.path(), Some("node")).unwrap().is_empty());
    }

    #[test]
    fn a_crash_at_any_byte_leaves_whole_records_and_a_whole_state() {
        let dir = tempfile::tempdir().unwrap();
        let (file, path) = create(dir.path(), "h").unwrap();
        write_about(&file, &about()).unwrap();
        let first = write(&file, START, 1, b"one\n").unwrap();
        let second = write(&file, first, 2, b"two").unwrap();
        let progress = Progress {
            part: Some(START),
            resume: START,
            skip: 2,
            ..Progress::default()
        };
        write_progress(&file, 1, &progress).unwrap();
        drop(file);
        for length in START..=second {
            let cut = dir.path().join("cut.journal");
            std::fs::copy(&path, &cut).unwrap();
            let cut_file = File::options().write(true).open(&cut).unwrap();
            cut_file.set_len(length).unwrap();
            // And in the middle of writing a state.
            let half = vec![7; (length - START) as usize];
            cut_file.write_all_at(&half, STATES[0]).unwrap();
            drop(cut_file);
            let left = open_left(&cut).unwrap().unwrap();
            // Two bytes of the first record are decided.
            let (end, amount) = match length {
                l if l >= second => (second, Amount { lines: 2, bytes: 5 }),
                l if l >= first => (first, Amount { lines: 1, bytes: 2 }),
                _ => (START, Amount::default()),
            };
            assert_eq!((left.end, left.amount), (end, amount), "{length}");
            assert_eq!(left.progress, progress);
            assert_eq!(left.about, Some(about()));
        }
    }

    #[test]
    fn the_newer_state_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (file, path) = create(dir.path(), "h").unwrap();
        for turn in 1..=5 {
            let progress = Progress {
                part: (turn > 1).then_some(START),
                last_time: turn,
                ..Progress::default()
            };
            write_progress(&file, turn, &progress).unwrap();
            assert_eq!(read_progress(&file).unwrap(), progress);
        }
        drop(file);
        assert_eq!(open_left(&path).unwrap().unwrap().about, None);
    }

    #[test]
    fn what_was_given_back_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (file, path) = create(dir.path(), "h").unwrap();
        let big = vec![b'x'; MOST_IN_A_RECORD];
        let mut end = START;
        let mut ends = vec![];
        for _ in 0..40 {
            end = write(&file, end, 1, &big).unwrap();
            ends.push(end);
        }
        let progress = Progress {
            part: Some(START),
            resume: ends[30],
            ..Progress::default()
        };
        write_progress(&file, 1, &progress).unwrap();
        let before = file.metadata().unwrap().blocks();
        if release(&file, START, ends[30]).is_ok() {
            assert!(file.metadata().unwrap().blocks() < before / 2);
        }
        drop(file);
        let left = open_left(&path).unwrap().unwrap();
        assert_eq!((left.end, left.amount.bytes), (end, 9 * big.len() as u64));
    }
}
