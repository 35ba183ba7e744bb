//! The spool file: records of output, each with the time it came.
//!
//! A record is the time (milliseconds since the epoch, 8 bytes), the length (4 bytes), both little
//! endian, then the bytes. A record that a crash cut short is no record.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

pub(super) const MOST_IN_A_RECORD: usize = 64 * 1024;
const HEADER: usize = 12;
/// Room for one whole record and many small ones.
const BUFFER: usize = 2 * (MOST_IN_A_RECORD + HEADER);

/// A new spool file in `dir`, for this user alone.
pub(super) fn create(dir: &Path) -> io::Result<(File, PathBuf)> {
    let (file, path) = tempfile::Builder::new()
        .prefix("output-")
        .suffix(".journal")
        .tempfile_in(dir)?
        .keep()
        .map_err(|e| e.error)?;
    Ok((file, path))
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

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub time: u64,
    pub bytes: &'a [u8],
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
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            offset: 0,
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
        if length > MOST_IN_A_RECORD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.have(HEADER + length, end)?;
        let start = self.used + HEADER;
        self.used = start + length;
        self.offset += (HEADER + length) as u64;
        Ok(Some(Record {
            time,
            bytes: &self.buffer[start..start + length],
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

    #[test]
    fn what_is_written_is_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (file, path) = create(dir.path()).unwrap();
        let texts: Vec<Vec<u8>> = [0, 1, 7, MOST_IN_A_RECORD, 3, MOST_IN_A_RECORD, 60_000, 9]
            .iter()
            .map(|n| vec![b'a' + (*n % 26) as u8; *n])
            .collect();
        let mut end = 0;
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
    fn the_spool_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = create(dir.path()).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
