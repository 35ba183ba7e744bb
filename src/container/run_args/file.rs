//! Files that flags name. Tasks name them, so that none is read without end: only plain files, and not
//! beyond a size that no such file has.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::error::RunArgsError;

const MOST: u64 = 16 << 20;

pub(super) fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, RunArgsError> {
    let content = || {
        // A pipe would wait for a writer when it is opened.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no plain file"));
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > MOST {
            true => Err(io::Error::other("it is larger than 16 MiB")),
            false => Ok(bytes),
        }
    };
    content().map_err(|source| RunArgsError::File {
        flag,
        path: path.to_owned(),
        source,
    })
}
