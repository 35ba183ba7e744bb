//! Files on their way into a container and out of it: tar archives, as the engine takes and gives them.
//! What goes in is packed while it is sent, so that a program of any size needs no memory.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::PathBuf;

use bollard::errors::Error as EngineError;
use bollard::query_parameters::{DownloadFromContainerOptions, UploadToContainerOptions};
use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_util::bytes::Bytes;

use super::engine::Engine;
use super::error::ContainerError;

const CHUNK: usize = 256 * 1024;
/// Files that come back are the agent's own and small.
const MOST_BACK: usize = 16 << 20;

/// What is placed.
#[derive(Debug)]
pub struct Item {
    /// Relative to the folder that the archive is unpacked in.
    pub path: String,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub content: Content,
}

pub enum Content {
    Folder,
    Text(String),
    /// A file of this machine.
    File(PathBuf),
}

/// Without the text: among it are secrets.
impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::Folder => f.write_str("Folder"),
            Content::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Content::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// Unpacks `items` in the container's folder `into`, which must be there.
pub async fn put(
    engine: &Engine,
    container: &str,
    into: &str,
    items: Vec<Item>,
) -> Result<(), ContainerError> {
    const AT: &str = "copying the agent into the container";
    let (sender, receiver) = mpsc::channel::<Bytes>(4);
    let packing = tokio::task::spawn_blocking(move || pack(&items, Chunks::new(sender)));
    let chunks = stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    let options = UploadToContainerOptions {
        path: into.to_owned(),
        ..UploadToContainerOptions::default()
    };
    let sent = engine
        .patient()
        .upload_to_container(container, Some(options), bollard::body_stream(chunks))
        .await;
    let packed = packing.await.map_err(io::Error::other).and_then(|p| p);
    // The engine's word first: a hang-up of its own makes the packing fail, too.
    sent.map_err(|error| ContainerError::from_engine(AT, &error))?;
    packed.map_err(|error| ContainerError::Engine {
        at: AT,
        cause: error.to_string(),
    })
}

fn pack(items: &[Item], out: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_mode(item.mode);
        header.set_uid(item.uid);
        header.set_gid(item.gid);
        header.set_size(0);
        match &item.content {
            Content::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, &item.path, io::empty())?;
            }
            Content::Text(text) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(text.len() as u64);
                tar.append_data(&mut header, &item.path, text.as_bytes())?;
            }
            Content::File(path) => {
                let file = File::open(path)
                    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
                let length = file.metadata()?.len();
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(length);
                // Neither more nor less than the header says, whatever becomes of the file meanwhile.
                let exactly = file.take(length).chain(io::repeat(0)).take(length);
                tar.append_data(&mut header, &item.path, exactly)?;
            }
        }
    }
    tar.into_inner()?.flush()
}

/// Sends what is written in pieces.
struct Chunks {
    sender: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
}

impl Chunks {
    fn new(sender: mpsc::Sender<Bytes>) -> Self {
        let piece = Vec::with_capacity(CHUNK);
        Self { sender, piece }
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(CHUNK));
        self.sender
            .blocking_send(piece.into())
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= CHUNK {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// The file at `path` in the container; `None` where there is none.
pub async fn get(
    engine: &Engine,
    container: &str,
    path: &str,
) -> Result<Option<Vec<u8>>, ContainerError> {
    const AT: &str = "reading a file of the container";
    let options = DownloadFromContainerOptions { path: path.into() };
    let mut pieces = engine
        .docker()
        .download_from_container(container, Some(options));
    let mut archive = Vec::new();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => archive.extend_from_slice(&piece),
            Err(EngineError::DockerResponseServerError {
                status_code: 404, ..
            }) => return Ok(None),
            Err(error) => return Err(ContainerError::from_engine(AT, &error)),
        }
        if archive.len() > MOST_BACK {
            return Err(ContainerError::Engine {
                at: AT,
                cause: format!("{path} is larger than {MOST_BACK} bytes"),
            });
        }
    }
    unpack_one(&archive).map_err(|error| ContainerError::Engine {
        at: AT,
        cause: format!("{path}: {error}"),
    })
}

/// The one file of an archive; `None` where it holds something else.
fn unpack_one(archive: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes_are_in_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, "x".repeat(3000)).unwrap();
        let item = |path: &str, mode, content| Item {
            path: path.into(),
            mode,
            uid: 1000,
            gid: 100,
            content,
        };
        let long = format!("{}/f", "d".repeat(150));
        let items = [
            item("private", 0o700, Content::Folder),
            item("private/secret", 0o600, Content::Text("s3cret".into())),
            item("bin", 0o755, Content::File(program)),
            item(&long, 0o644, Content::Text(String::new())),
        ];
        let mut bytes = Vec::new();
        pack(&items, &mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let seen: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (1000, 100));
                let path = entry.path().unwrap().to_string_lossy().into_owned();
                (path, header.mode().unwrap(), entry.size())
            })
            .collect();
        let expected = [
            ("private".to_owned(), 0o700, 0),
            ("private/secret".to_owned(), 0o600, 6),
            ("bin".to_owned(), 0o755, 3000),
            (long, 0o644, 0),
        ];
        assert_eq!(seen, expected);
        let one = unpack_one(&bytes).unwrap();
        assert_eq!(one.as_deref(), Some(b"s3cret".as_slice()));
        assert!(!format!("{items:?}").contains("s3cret"));
    }
}
